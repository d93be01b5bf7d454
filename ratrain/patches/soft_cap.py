"""Soft cap: bounds attention scores to (-cap, cap).

    score <- cap tanh(score / cap)

before the mask and the softmax; scores are the base's, q . k / sqrt(D), [B, H, T, T]. No parameters.
Source: Gemma Team 2024, "Gemma 2", arXiv:2408.00118, section 2, with a cap of 50 in attention. The scores are
materialised, which takes T^2 memory; the products, and so the counted FLOPs, are the base's.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.scores import ScoreCore
from ratrain.registry import Patch, register


@register("soft_cap")
class SoftCap(Patch):
    """Attention scores bounded by `cap`, as in Gemma 2."""

    target: str = "blocks.*.attn.core"
    cap: PositiveFloat = 50.0

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return CappedCore(spec, cap=self.cap)


class CappedCore(ScoreCore):
    """Attention whose scores are score + s (cap tanh(score / cap) - score)."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec, *, cap: float):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.cap = cap
        self.register_buffer("s", torch.empty(()))

    def extra_repr(self) -> str:
        return f"cap={self.cap}"

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.s.fill_(1.0)

    def probabilities(self, scores: Tensor, seen: Tensor) -> Tensor:
        capped = self.cap * (scores / self.cap).tanh()
        return super().probabilities(scores + self.s * (capped - scores), seen)  # s = 0 is the base, exactly
