"""Scalable softmax: scales scores by the logarithm of the number of visible keys.

    score_ij <- w_h log(i + 1) score_ij,  i = 0, 1, ...

so that a softmax over many keys can be as sharp as over few. w is learned per head and starts at one over the mean of
the logarithms over a context (0.168 for 1024 tokens), so that scores start as large as the base's on average. It
scales queries [B, H, T, D] after the base's position encoding.
Source: Nakanishi 2025, "Scalable-Softmax Is Superior for Attention", arXiv:2501.19399.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register


@register("scalable_softmax")
class ScalableSoftmax(Patch):
    """A learned factor of log(number of keys) per head on the scores; nothing to set."""

    target: str = "blocks.*.attn.pos"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if spec.block_size == 1:
            raise ValueError("needs contexts of more than one token")
        return LogScale(old, spec)


class LogScale(Mechanism):
    """Queries scaled by 1 + s (w log(i + 1) - 1)."""

    def __init__(self, inner: nn.Module, spec: ModelSpec):
        super().__init__()
        self.inner = inner
        self.init = spec.block_size / math.lgamma(spec.block_size + 1)  # log n! is the sum of the logarithms
        self.w = nn.Parameter(torch.empty(spec.n_head))  # 1-D: never decayed

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.w, self.init)
        super().reset_parameters(generator)

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        q, k = self.inner(q, k, start)
        n_seen = torch.arange(start + 1, start + 1 + q.shape[2], device=q.device, dtype=self.w.dtype)
        scale = 1 + self.s * (self.w[:, None] * n_seen.log() - 1)  # [H, S]; s = 0 is the base, exactly
        return (q * scale[..., None]).to(q.dtype), k

    def probes(self) -> dict[str, Tensor]:
        return {"w": self.w}
