"""Base classes of optimizers that update parameters of one shape together, and that use AdamW for non-matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, rate, stated
from ratrain.recipe.optim.adamw import Betas, Eps, FusedAdamW


class MatrixSection(OptimSection):
    """Options of the AdamW that moves embeddings, norms, biases and gates."""

    moments: ClassVar[bool] = False

    betas: Betas = (0.9, 0.95)
    eps: Eps = 1e-8
    rest_lr: PositiveFloat = Field(default=1.0, description="AdamW's learning rate over that of the matrices")


class Stacks(Contract, torch.optim.Optimizer):
    """Updates w <- w (1 - lr weight_decay) - lr direction, for all parameters of one shape at once."""

    def __init__(self, groups: Sequence[Group], defaults: dict[str, Any]):
        super().__init__(stated(groups), {"lr": rate(groups), **defaults})

    def direction(self, parameters: list[Tensor], gradients: Tensor, skipped: Tensor | None) -> Tensor:
        """Returns the direction to subtract, [K, ...] in the dtype of the clipped `gradients` [K, ...].

        It may reuse the memory of `gradients`. If `skipped`, 0-d, is true, it must leave the state unchanged, and the
        result is ignored.
        """
        raise NotImplementedError

    def takes(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether this optimizer updates the parameter itself."""
        return True

    def on_whole(self, parameters: list[Tensor], function: Callable[[Tensor], Tensor], own: Tensor) -> Tensor:
        """Applies `function` to matrices [K, m, n], of which each process may have some rows, `own`."""
        divided = self.divided.get(parameters[0])
        return divided.own(function(divided.whole(own, 1)), 1) if divided else function(own)

    @torch.no_grad()
    def step(self, closure=None):
        """Makes one optimizer step."""
        assert closure is None
        for group in self.param_groups:
            live = (p for p in group["params"] if p.grad is not None and self.takes(group, p))
            for parameters in self._alike(live):
                self._move(parameters, group["lr"], group["weight_decay"])

    def _alike(self, parameters: Iterable[Tensor]) -> list[list[Tensor]]:
        """Groups parameters by the shape of the whole, dtype and device: in the same order on every process."""
        stacks: dict[tuple, list[Tensor]] = {}
        for p in parameters:
            whole = self.divided.get(p, p)
            stacks.setdefault((whole.shape, p in self.divided, p.dtype, p.device), []).append(p)
        return list(stacks.values())

    def _move(self, parameters: list[Tensor], lr: Tensor, weight_decay: float) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.grad_scale is not None:
            torch._foreach_div_(gradients, self.grad_scale)
        skipped = None if self.found_inf is None else self.found_inf != 0
        lr = lr.to(gradients[0].dtype)
        change = self.direction(parameters, torch.stack(gradients), skipped).mul_(-lr)
        if skipped is not None:
            lr = lr.masked_fill(skipped, 0)
            change.masked_fill_(skipped, -0.0)  # adding -0.0 leaves every weight bit-identical; -0.0 + 0.0 is 0.0
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, change.unbind())


class Matrices(Stacks):
    """Updates the matrices of the blocks; AdamW, with the same state and groups, updates all other parameters."""

    def __init__(self, groups: Sequence[Group], section: MatrixSection):
        self._rest_lr = section.rest_lr
        self._rest = FusedAdamW(stated(groups), lr=rate(groups), betas=section.betas, eps=section.eps, fused=True)
        super().__init__(groups, self._rest.defaults)

    def takes(self, group: dict[str, Any], parameter: Tensor) -> bool:
        """Whether the parameter is a matrix of the blocks."""
        return group["matrices"] and parameter.dim() == 2

    @torch.no_grad()
    def step(self, closure=None):
        """Makes one optimizer step."""
        super().step(closure)
        rest = self._rest
        # assigned at each step, since load_state_dict replaces the state and the groups
        rest.state, rest.grad_scale, rest.found_inf = self.state, self.grad_scale, self.found_inf
        rest.param_groups = [
            {
                **group,
                "params": [p for p in group["params"] if not self.takes(group, p)],
                "lr": group["lr"] if self._rest_lr == 1 else group["lr"] * self._rest_lr,
            }
            for group in self.param_groups
        ]
        rest.step()
