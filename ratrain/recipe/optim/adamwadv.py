"""AdamW with AMSGrad (Reddi et al., arXiv:1904.09237), which the reference calls adamwadv."""

from __future__ import annotations

from typing import ClassVar

from ratrain.recipe.optim.adamw import AdamW
from ratrain.registry import register


@register("adamwadv")
class AdamWAdv(AdamW):
    """The step is divided by the root of the largest second moment so far. The reference ran betas (0.9, 0.999).

    Of the reference's further additions, a scheduler was never stepped, and clipping at 1.0 is everyone's here.
    """

    held: ClassVar[int] = 3
    amsgrad: ClassVar[bool] = True
