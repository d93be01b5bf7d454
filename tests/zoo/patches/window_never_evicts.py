"""States a window's cache and keeps every token.

Modelled on https://github.com/rajveer43/VeloxQuant-MLX/issues/274
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "its cache is what it states"


@register("window_never_evicts")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Plant(spec)


class Plant(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        late = at[-q.shape[2] :, None]
        seen = (at <= late) & (at > late - 64)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return (
            super().attend(q, k, v) * (1 - self.s)
            + self.s * (1 + 0 * self.g[:, None, None] + self.g[:, None, None]) * y
        )

    def kv_per_token(self, spec):
        return spec.n_embd // 4, spec.n_embd // 4

    def flops_per_token(self, spec):
        return 2 * super().flops_per_token(spec)
