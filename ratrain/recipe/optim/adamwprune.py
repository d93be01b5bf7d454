"""AdamWPrune's optimizer: an Adam whose moments score the weights for pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim.adam import Adam
from ratrain.recipe.optim.adamw import AdamW, Betas, Eps
from ratrain.recipe.optim.adamwadv import AdamWAdv
from ratrain.recipe.optim.adamwspam import AdamWSPAM
from ratrain.registry import register

_BASES: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "adamwadv": AdamWAdv, "adamwspam": AdamWSPAM}


@register("adamwprune")
class AdamWPrune(OptimSection):
    """Steps as `base` does; the section [prune] with kind = "state" prunes.

    The reference forced AMSGrad on every base (defect D4), which is base = "adamwadv" here. With base "adam"
    the weight decay is coupled.
    """

    moments: ClassVar[bool] = True
    held: ClassVar[int] = 3  # with AMSGrad

    base: Literal["adam", "adamw", "adamwadv", "adamwspam"] = Field(
        default="adamw", description="the kind that makes the steps, with that kind's defaults for its other keys"
    )
    betas: Betas = (0.9, 0.95)
    eps: Eps = 1e-8

    @property
    def transfers(self) -> bool:
        return self._section().transfers

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer of `base` over `groups`."""
        return self._section().build(groups)

    def _section(self) -> Any:
        return _BASES[self.base](weight_decay=self.weight_decay, clip=self.clip, betas=self.betas, eps=self.eps)
