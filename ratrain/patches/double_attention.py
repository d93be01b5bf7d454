"""Double attention: adds a second softmax attention with queries and keys exchanged.

    y = SDPA(q, k, v) + SDPA(k, q, v)

Source: the reference's last reciprocal arm (November 2025), dropped after one run. Two softmaxes are outside GPT-2's
function class. It costs a second attention call, and decoding caches queries beside keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("double_attention")
class DoubleAttention(Patch):
    """Attention as it is, plus attention with queries and keys exchanged; nothing to set, no parameters."""

    target: str = "blocks.*.attn.core"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return DoubleCore(spec)


class DoubleCore(Core):
    """SDPA(q, k, v) + s SDPA(k, q, v), both causal."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.s.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        all_q, all_k, v = (q, k, v) if cache is None else cache.append(q, k, v)
        return self.attend(q, all_k, v) + self.s * self.attend(k, all_q, v)  # s = 0 is the base, exactly

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * super().flops_per_token(spec)

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns (keys, values); queries count as keys of the second call."""
        return 2 * spec.n_embd, spec.n_embd
