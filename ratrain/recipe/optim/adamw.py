"""AdamW (Loshchilov and Hutter, arXiv:1711.05101): ratrain's kernel on a GPU, torch's fused version elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ratrain.config.schema import OptimSection
from ratrain.kernels import adamw
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, rate, stated
from ratrain.registry import register

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False, description="decay per step of Adam's two moments")]
Eps = Annotated[PositiveFloat, Field(description="added to the root of Adam's second moment")]


class FusedAdamW(Contract, torch.optim.AdamW):
    """torch's fused AdamW, which divides by `grad_scale` and applies `found_inf` as it reads the gradients.

    If ratrain's kernel supports all parameters, the kernel makes the step and also reads and writes bf16 copies in the
    same pass. The state is the same in both cases.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        every = [p for group in self.param_groups for p in group["params"]]
        self.publishes = not self.defaults["amsgrad"] and all(adamw.serves(p) for p in every)
        self._kernel = adamw.AdamW()

    @torch.no_grad()
    def step(self, closure=None):
        """Makes one optimizer step."""
        if not self.publishes:
            return super().step(closure)
        for index, group in enumerate(self.param_groups):
            if moved := [one for p in group["params"] if (one := self._moved(p)) is not None]:
                self._kernel(
                    index, moved, lr=group["lr"], betas=group["betas"], eps=group["eps"],
                    weight_decay=group["weight_decay"], grad_scale=self.grad_scale, found_inf=self.found_inf,
                )  # fmt: skip
        if self.grad_scale is not None:  # the kernel does not write gradients; divide the few of vectors here
            vectors = (p.grad for group in self.param_groups for p in group["params"] if p.dim() < 2)
            if small := [gradient for gradient in vectors if gradient is not None]:
                torch._foreach_div_(small, self.grad_scale)
        return None

    def _moved(self, parameter: Tensor) -> adamw.Moved | None:
        """Returns the tensors that a step reads and writes; None without a gradient."""
        copy = self.copies.get(parameter)
        gradient = parameter.grad if parameter.grad is not None or copy is None else copy.grad
        if gradient is None:
            return None
        state = self.state[parameter]
        if not state:  # torch's initial state
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return adamw.Moved(parameter, gradient.contiguous(), state["exp_avg"], state["exp_avg_sq"], state["step"], copy)


@register("adamw")
class AdamW(OptimSection):
    """Decoupled weight decay; moments in fp32."""

    moments: ClassVar[bool] = True
    amsgrad: ClassVar[bool] = False

    betas: Betas = (0.9, 0.95)
    eps: Eps = 1e-8

    @property
    def transfers(self) -> bool:
        return True

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device.

        It reads `grad_scale` and `found_inf`, so that clipping and skipping need no separate pass.
        """
        made = stated(groups, eps=self.eps)
        return FusedAdamW(made, lr=rate(groups), betas=self.betas, eps=self.eps, amsgrad=self.amsgrad, fused=True)
