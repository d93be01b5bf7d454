"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), torch's fused implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.registry import register

Beta = Annotated[float, Field(ge=0, lt=1)]


@register("adamw")
class AdamW(OptimSection):
    """Decoupled weight decay; moments in fp32."""

    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), strict=False)
    eps: PositiveFloat = 1e-8

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """The optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device.

        It reads `grad_scale` and `found_inf`, so that clipping and skipping cost no pass of their own.
        """
        device = groups[0].parameters[0].device
        return torch.optim.AdamW(
            [{"params": list(g.parameters), "weight_decay": g.weight_decay} for g in groups if g.parameters],
            lr=torch.zeros((), device=device),
            betas=self.betas,
            eps=self.eps,
            fused=True,
        )
