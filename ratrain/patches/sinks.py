"""Attention sinks: a learned score per head in the softmax without a value.

    p_ij = exp(score_ij) / (exp(b_h) + sum_l exp(score_il)),  j, l <= i

so that a head may attend to nothing. b starts at 0, which is "softmax off by one". One parameter per head; scores
[B, H, T, T] have one more column and are materialised.
Source: the sinks of gpt-oss (OpenAI 2025, arXiv:2508.10925). They replace a first token to which every head attends,
described by Xiao et al. 2023, arXiv:2309.17453.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.scores import ScoreCore
from ratrain.registry import Patch, register


@register("sinks")
class Sinks(Patch):
    """A learned sink per head in the softmax's denominator; nothing to set."""

    target: str = "blocks.*.attn.core"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return SinkCore(spec)


class SinkCore(ScoreCore):
    """Attention with s exp(b) added to each denominator."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.b = nn.Parameter(torch.empty(spec.n_head))  # 1-D: never decayed
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.b)
        self.s.fill_(1.0)

    def probabilities(self, scores: Tensor, seen: Tensor) -> Tensor:
        sink = (self.b + self.s.log())[:, None, None].to(scores.dtype)  # s = 0: exp(-inf), the base exactly
        masked = scores.masked_fill(~seen, float("-inf"))
        return torch.cat([masked, sink.expand(*scores.shape[:3], 1)], dim=-1).softmax(-1)[..., :-1]

    def probes(self) -> dict[str, Tensor]:
        return {"b": self.b}
