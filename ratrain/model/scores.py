"""Attention with materialised scores, for mechanisms that no fused attention call can express."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ratrain.model.gpt2 import Core


def scores_of(q: Tensor, k: Tensor, *, scale: float | None = None) -> Tensor:
    """Computes scaled scores of q [B, H, S, D] and k [B, H, T, D] -> [B, H, S, T]; fp32 at least, as if fused."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def causal(scores: Tensor) -> Tensor:
    """Returns the causal mask of the last S of T tokens, bool [S, T], for scores [..., S, T]."""
    n_query, n_key = scores.shape[-2:]
    return torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)


class ScoreCore(Core):
    """The base's attention as two products and a softmax; the scores take B x H x T x T elements of memory."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends from q [B, H, S, D], the last S of T positions, to k, v [B, H, T, D] -> [B, H, S, D]."""
        scores = scores_of(q, k, scale=self.scale)
        seen = causal(scores)
        probs = F.dropout(self.probabilities(scores, seen), self.dropout, self.training)
        return probs.to(v.dtype) @ v

    def probabilities(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Returns attention probabilities from scores [B, H, S, T]; 0 for keys masked by seen [S, T]."""
        return scores.masked_fill(~seen, float("-inf")).softmax(-1)
