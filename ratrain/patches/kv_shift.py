"""KV shift: mixes the previous token's keys and values into the current ones.

    k_t <- a k_t + a' k_{t-1},  v_t <- b v_t + b' v_{t-1},  nothing before the first token

with the four gates learned per head; a and b start uniform in (0, 1), a' = 1 - a and b' = 1 - b. One layer can then
form induction heads, which otherwise need two. k and v [B, H, T, D]; the cache holds the base's k and v and the shift
follows it, so that decoding caches no more. On RoPE k_{t-1} stays rotated by its own position.
Source: Xu et al. 2024, "KV Shifting Attention Enhances Language Modeling", arXiv:2411.19574.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("kv_shift")
class KVShift(Patch):
    """Gates per head on this and the previous token's keys and values; nothing to set."""

    target: str = "blocks.*.attn.core"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return ShiftCore(spec)


class ShiftCore(Core):
    """Attention over x + s (a x_t + a' x_{t-1} - x), for x = k and v."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec):
        super().__init__(spec.dropout, scale=spec.score_scale)
        # 1-D: never decayed
        self.k_own, self.k_before, self.v_own, self.v_before = (
            nn.Parameter(torch.empty(spec.n_head)) for _ in range(4)
        )
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for own, before in ((self.k_own, self.k_before), (self.v_own, self.v_before)):
            nn.init.uniform_(own, generator=generator)
            before.copy_(1 - own)
        self.s.fill_(1.0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, self.shift(k, self.k_own, self.k_before), self.shift(v, self.v_own, self.v_before))

    def shift(self, x: Tensor, own: Tensor, before: Tensor) -> Tensor:
        """Shifts x [B, H, T, D] with gates [H] on the current and on the previous token."""
        previous = F.pad(x[:, :, :-1], (0, 0, 1, 0))
        new = own[:, None, None] * x + before[:, None, None] * previous
        return (x + self.s * (new - x)).to(x.dtype)  # s = 0 is the base, exactly

    def probes(self) -> dict[str, Tensor]:
        return {"k_own": self.k_own, "k_before": self.k_before, "v_own": self.v_own, "v_before": self.v_before}
