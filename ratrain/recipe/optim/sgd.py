"""Stochastic gradient descent with momentum, torch's fused implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, rate, stated
from ratrain.registry import register


class FusedSGD(Contract, torch.optim.SGD):
    """torch's fused SGD, which divides by `grad_scale` and applies `found_inf` itself; momentum starts at zero."""

    def step(self, closure=None):
        """Makes one step. Without dampening, a zero momentum buffer yields the same first step as no buffer."""
        # torch allocates the buffer in the first step and leaves it uninitialised if that step is skipped
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else ():
                if p.grad is not None and "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return super().step(closure)


@register("sgd")
class SGD(OptimSection):
    """m <- momentum m + (g + weight_decay w), w <- w - lr m: torch's weight decay is coupled, it enters the momentum.

    Gradients are clipped as for every optimizer; the reference clipped them for all but this one (defect D19).
    """

    held: ClassVar[int] = 1

    momentum: float = Field(default=0.9, ge=0, lt=1, description="decay per step of the sum of gradients; 0: none")
    nesterov: bool = Field(default=False, description="step along g + momentum m")

    @model_validator(mode="after")
    def _has_momentum(self):
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks along the momentum; expected momentum above 0")
        return self

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return FusedSGD(
            stated(groups), lr=rate(groups), momentum=self.momentum, nesterov=self.nesterov, fused=True
        )  # fmt: skip
