"""Plain-PyTorch head projection + cross-entropy: the definition every implementation must match.

Shape letters: N rows (batch x tokens), C channels, V rows of the weight. It holds all N x V logits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, targets: Tensor, n_class: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Summed loss over rows whose target is not `ignore`, and how many there are; classes >= n_class cannot occur."""
    logits = x @ weight[:n_class].T  # [N, n_class]
    counted = targets != ignore  # [N]
    picked = logits.gather(1, targets.where(counted, 0)[:, None])[:, 0]
    losses = (logits.logsumexp(-1) - picked).where(counted, 0)
    return losses.sum(), counted.sum()


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, targets: Tensor, n_class: int, ignore: int, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Gradients of the summed loss for x [N, C] and weight [V, C]: (softmax - onehot) times the other factor, and those
    of z_loss times the sum of logsumexp^2."""
    counted = targets != ignore
    logits = x @ weight[:n_class].T
    d_logits = logits.softmax(-1) * (1 + 2 * z_loss * logits.logsumexp(-1, keepdim=True))  # [N, n_class]
    d_logits.scatter_add_(1, targets.where(counted, 0)[:, None], d_logits.new_full((len(x), 1), -1.0))
    d_logits = d_logits * (grad * counted)[:, None]
    d_weight = torch.zeros_like(weight)
    d_weight[:n_class] = d_logits.T @ x
    return d_logits @ weight[:n_class], d_weight
