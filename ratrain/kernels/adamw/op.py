"""AdamW on a GPU in one pass over memory: gradients in, masters, moments and bf16 copies out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratrain.kernels.placement import on_kernels


@dataclass(frozen=True)
class Moved:
    """A parameter with its gradient and optimizer state, all contiguous and of one shape: fp32 `parameter`, `exp_avg`
    and `exp_avg_sq`, a gradient in fp32 or bf16, a bf16 copy of the parameter or None; `step` is fp32, 0-d."""

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether the gradient is bf16, and whether there is a copy: one launch updates parameters of one kind."""
        return self.gradient.dtype == torch.bfloat16, self.copy is not None

    def addresses(self) -> tuple[int, ...]:
        """Returns one row of the kernel's table: five addresses (0 for no copy) and the number of elements."""
        tensors = self.parameter, self.gradient, self.exp_avg, self.exp_avg_sq
        copy = 0 if self.copy is None else self.copy.data_ptr()
        return *(x.data_ptr() for x in tensors), copy, self.parameter.numel()


def serves(parameter: Tensor) -> bool:
    """Whether the kernel can update the parameter."""
    return parameter.dtype == torch.float32 and on_kernels(parameter)


class AdamW:
    """Updates lists of parameters. Tables of addresses stay on the device, and are rewritten if an address changes."""

    def __init__(self):
        self._tables: dict[tuple[int, bool, bool], tuple[list[tuple[int, ...]], Tensor]] = {}
        self._blocks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # by sizes, which are constant

    def __call__(
        self, group: int, moved: Sequence[Moved], *, lr: Tensor, betas: tuple[float, float], eps: float,
        weight_decay: float, grad_scale: Tensor | None, found_inf: Tensor | None,
    ) -> None:  # fmt: skip
        """Takes one step on the parameters of `group`. Gradients are divided by `grad_scale` as they are read, and are
        not modified. If `found_inf` is not 0, nothing changes."""
        from . import kernel

        device = moved[0].parameter.device
        skip = torch.zeros((), device=device) if found_inf is None else found_inf
        scale = torch.ones((), device=device) if grad_scale is None else grad_scale
        steps = [one.step for one in moved]
        torch._foreach_add_(steps, 1)
        torch._foreach_sub_(steps, [skip] * len(steps))
        for narrow, copied in sorted({one.kind for one in moved}):
            same = [one for one in moved if one.kind == (narrow, copied)]
            table, owner, place = self._table((group, narrow, copied), same, kernel.block())
            kernel.update(
                table, owner, place, _corrections(same, betas), narrow=narrow, copied=copied, lr=lr, grad_scale=scale,
                found_inf=skip, betas=betas, eps=eps, weight_decay=weight_decay,
            )  # fmt: skip

    def _table(self, key: tuple[int, bool, bool], moved: Sequence[Moved], block: int) -> list[Tensor]:
        """Returns the addresses [n, 6], and the tensor and the block of each program, [programs] each."""
        rows, device = [one.addresses() for one in moved], moved[0].parameter.device
        known = self._tables.get(key)
        if known is None or known[0] != rows:  # gradients may have new addresses at every step
            known = self._tables[key] = rows, _sent(torch.tensor(rows), device)
        counts = tuple(-(-one.parameter.numel() // block) for one in moved)
        if counts not in self._blocks:
            owner = torch.arange(len(moved), dtype=torch.int32).repeat_interleave(torch.tensor(counts))
            place = torch.cat([torch.arange(count, dtype=torch.int32) for count in counts])
            self._blocks[counts] = _sent(owner, device), _sent(place, device)
        return [known[1], *self._blocks[counts]]


def _corrections(moved: Sequence[Moved], betas: tuple[float, float]) -> Tensor:
    """Returns 1 - beta1^t and sqrt(1 - beta2^t) of each parameter [n, 2], fp32; computed in fp64, because they are
    small differences near t = 1."""
    steps = torch.stack([one.step for one in moved]).double()
    return torch.stack([1 - betas[0] ** steps, (1 - betas[1] ** steps).sqrt()], dim=1).float()


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """Copies x to the device, asynchronously on CUDA."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
