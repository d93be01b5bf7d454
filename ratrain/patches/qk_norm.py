"""QK-norm: scales queries and keys of every head to a root mean square of one, with a gain per head.

    score_ij = g_h q_i / rms(q_i) . k_j / rms(k_j) / sqrt(D)

with g learned per head, initially 1: scores cannot grow with the weights. q and k [B, H, T, D]; a gate on score
channels follows the norm. A base with QK-norm (`model.qk_norm`) raises ValueError.
Source: Henry et al. 2020, "Query-Key Normalization for Transformers", arXiv:2010.04245, with one gain for a model;
normed before the product with the root of D kept, as in Dehghani et al. 2023 (ViT-22B), arXiv:2302.05442.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, register


@register("qk_norm")
class QKNorm(Patch):
    """Normed queries and keys, with a gain per head; nothing to set."""

    target: str = "blocks.*.attn.qkv"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if spec.qk_norm != "none":
            raise ValueError(f"the base norms queries and keys already (model.qk_norm = {spec.qk_norm!r})")
        return UnitQK(old, spec)


class UnitQK(Mechanism):
    """The base's projection with q + s (g q / rms(q) - q) and k + s (k / rms(k) - k)."""

    def __init__(self, inner: nn.Module, spec: ModelSpec):
        super().__init__()
        self.inner, self.eps = inner, spec.norm_eps
        self.g = nn.Parameter(torch.empty(spec.n_head))  # 1-D: never decayed

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.g)
        super().reset_parameters(generator)

    def forward(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.inner(x, None)  # each [B, H, T, D]
        unit_q, unit_k = (F.rms_norm(t, t.shape[-1:], eps=self.eps) for t in (q, k))
        q_normed = q + self.s * (self.g[:, None, None] * unit_q - q)  # s = 0 is the base, exactly
        if gate is not None:
            q_normed = q_normed * gate[:, None]
        return q_normed.to(q.dtype), k + self.s * (unit_k - k), v

    def probes(self) -> dict[str, Tensor]:
        return {"g": self.g}
