"""Adam (Kingma and Ba, arXiv:1412.6980), torch's fused implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._contract import Contract, rate, stated
from ratrain.recipe.optim.adamw import Betas, Eps
from ratrain.registry import register


class FusedAdam(Contract, torch.optim.Adam):
    """torch's fused Adam, which divides by `grad_scale` and applies `found_inf` itself."""


@register("adam")
class Adam(OptimSection):
    """Weight decay is coupled: it is added to the gradient (L2), goes through both moments, and is 0 by default."""

    moments: ClassVar[bool] = True

    weight_decay: float = Field(default=0.0, ge=0, description="L2, coupled, on the matrices of the blocks only")
    betas: Betas = (0.9, 0.95)
    eps: Eps = 1e-8

    @property
    def transfers(self) -> bool:
        return not self.weight_decay  # coupled decay goes through the moments, which undo every factor on it

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return FusedAdam(stated(groups, eps=self.eps), lr=rate(groups), betas=self.betas, eps=self.eps, fused=True)
