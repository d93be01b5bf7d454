"""Differential attention: the difference of two softmaxes, each over half of a head's score channels.

    y = (1 - l_0) RMSNorm((softmax(q_1 k_1^T sqrt(2 / D)) - l softmax(q_2 k_2^T sqrt(2 / D))) v)
    l = exp(a_1 . b_1) - exp(a_2 . b_2) + l_0

with a and b [D / 2] learned per layer, N(0, 0.1^2), the norm per head with a weight [D]. Zeros in the queries select
the halves: both calls run fused at the base's width, which costs twice the base's attention, and the cache is the
base's. The halves are every other pair of channels, since RoPE rotates pairs.
Source: Ye et al. 2024, "Differential Transformer", arXiv:2410.05258, which halves the number of heads and increases l_0
with depth; here the heads are the base's and l_0 is the same in every layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("differential_attention")
class DifferentialAttention(Patch):
    """Two attention maps per head, one subtracted; `start` is l_0, the share that the second has at first."""

    target: str = "blocks.*.attn.core"
    start: float = Field(default=0.8, gt=0, lt=1)

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if spec.head_dim % 4:
            raise ValueError(f"halves of whole pairs need n_embd / n_head to be a multiple of 4, got {spec.head_dim}")
        if spec.score_scale is not None:
            raise ValueError("l sums over the head's channels, so that n_embd / n_head must be that of model.base")
        return DifferentialCore(spec, start=self.start)


class DifferentialCore(Core):
    """s moves the first call from all channels to half of them, and brings in the second call and the norm."""

    is_second: Tensor
    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec, *, start: float):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.start, self.eps = start, spec.norm_eps
        self.a_1, self.b_1, self.a_2, self.b_2 = (nn.Parameter(torch.empty(spec.head_dim // 2)) for _ in range(4))
        self.weight = nn.Parameter(torch.empty(spec.head_dim))
        self.register_buffer("is_second", torch.empty(spec.head_dim, dtype=torch.bool), persistent=False)
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for vector in (self.a_1, self.b_1, self.a_2, self.b_2):
            nn.init.normal_(vector, std=0.1, generator=generator)
        nn.init.ones_(self.weight)
        self.is_second.copy_(torch.arange(self.is_second.numel()) % 4 >= 2)
        self.s.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        k, v = (k, v) if cache is None else cache.append(k, v)
        first = torch.where(self.is_second, 1 - self.s, 1 + self.s * (2**0.5 - 1))  # [D]
        y = self.attend((q * first).to(q.dtype), k, v)
        y = y - self.s * self.share() * self.attend(q * self.is_second * 2**0.5, k, v)
        normed = (1 - self.start) * F.rms_norm(y, self.weight.shape, self.weight, self.eps)
        return y + self.s * (normed - y)  # s = 0 is the base, exactly

    def share(self) -> Tensor:  # [1]
        return (self.a_1 * self.b_1).sum(0, True).exp() - (self.a_2 * self.b_2).sum(0, True).exp() + self.start

    def probes(self) -> dict[str, Tensor]:
        return {"share": self.share()}

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * super().flops_per_token(spec)
