"""Plain-PyTorch reciprocal attention: the definition that every kernel must match.

Shape letters: B batch, H heads, T tokens, D head_dim. For j <= i

    score_ij = scale ((gate * q_i) . k_j + w_r k_i . q_j) + bias_j,  o = softmax(score) v,  y = (1 - alpha) o + alpha v

with a gate per score channel [H, D], w_r and alpha per head [H], a bias per key [B, H, T]. Tied RA has gate = w_s and a
w_r; folded RA has w_std on the first D - R channels, w_rec on the last R, and w_r = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, w_r: Tensor, bias: Tensor, alpha: Tensor, scale: float
) -> Tensor:
    """q, k, v [B, H, T, D] -> y [B, H, T, D]."""
    o = _probs(q, k, gate, w_r, bias, scale) @ v
    return o + alpha[:, None, None] * (v - o)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, w_r: Tensor, bias: Tensor, alpha: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, gate, w_r, bias and alpha, written out because autograd is off inside a custom op."""
    probs = _probs(q, k, gate, w_r, bias, scale)  # [B, H, T, T]
    a = alpha[:, None, None]
    d_o = (1 - a) * grad
    d_probs = d_o @ v.mT
    d_scores = probs * (d_probs - (d_probs * probs).sum(-1, keepdim=True))
    row, column = scale * (d_scores @ k), scale * (d_scores.mT @ q)  # from q_i . k_j, for q and for k
    other_row, other_column = scale * (d_scores @ q), scale * (d_scores.mT @ k)  # from k_i . q_j, for k and for q
    g, w = gate[:, None], w_r[:, None, None]
    return (
        g * row + w * other_column,
        g * column + w * other_row,
        probs.mT @ d_o + a * grad,
        (q * row).sum((0, 2)),
        (k * other_row).sum((0, 2, 3)),
        d_scores.sum(2),
        (grad * (v - probs @ v)).sum((0, 2, 3)),
    )


def _probs(q: Tensor, k: Tensor, gate: Tensor, w_r: Tensor, bias: Tensor, scale: float) -> Tensor:
    one_way = (q * gate[:, None]) @ k.mT + w_r[:, None, None] * (k @ q.mT)
    scores = scale * one_way + bias[:, :, None]
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)
