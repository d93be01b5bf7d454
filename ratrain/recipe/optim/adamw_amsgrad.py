"""AdamW with AMSGrad: the optimizer that the reference's V-series ran under the name adamwspam."""

from __future__ import annotations

from ratrain.recipe.optim.adamwadv import AdamWAdv
from ratrain.registry import register


@register("adamw_amsgrad")
class AdamWAMSGrad(AdamWAdv):
    """The same function as adamwadv. The reference ran betas (0.9, 0.999).

    Its second training script built adamwspam and never called the SPAM part (defect D13); this remains.
    """
