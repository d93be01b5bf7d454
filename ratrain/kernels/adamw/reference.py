"""One step of AdamW in plain PyTorch: the definition that the kernel must match.

    g = gradient / grad_scale,  m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2
    p <- p (1 - lr weight_decay) - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
"""

from __future__ import annotations

from torch import Tensor


def update(
    parameter: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, *, lr: float | Tensor,
    betas: tuple[float, float], eps: float, weight_decay: float, grad_scale: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The parameter and both moments after step number `step` (1 is the first), all in the parameter's dtype."""
    beta1, beta2 = betas
    gradient = gradient.to(parameter.dtype) / grad_scale
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    step = step.double()
    root = exp_avg_sq.sqrt() / (1 - beta2**step).sqrt() + eps
    return parameter * (1 - lr * weight_decay) - lr / (1 - beta1**step) * exp_avg / root, exp_avg, exp_avg_sq
