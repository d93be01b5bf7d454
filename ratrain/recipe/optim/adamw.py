"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), torch's fused implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, rate, stated
from ratrain.registry import register

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False, description="decay per step of Adam's two moments")]
Eps = Annotated[PositiveFloat, Field(description="added to the root of Adam's second moment")]


class FusedAdamW(Contract, torch.optim.AdamW):
    """torch's, which divides by `grad_scale` and heeds `found_inf` itself, while it reads the gradients."""


@register("adamw")
class AdamW(OptimSection):
    """Decoupled weight decay; moments in fp32."""

    moments: ClassVar[bool] = True
    amsgrad: ClassVar[bool] = False

    betas: Betas = (0.9, 0.95)
    eps: Eps = 1e-8

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """The optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device.

        It reads `grad_scale` and `found_inf`, so that clipping and skipping cost no pass of their own.
        """
        return FusedAdamW(
            stated(groups), lr=rate(groups), betas=self.betas, eps=self.eps, amsgrad=self.amsgrad, fused=True
        )
