"""Decodes with one token fewer in its window than it trains with.

Modelled on https://github.com/huggingface/transformers/issues/37574
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("window_off_by_one")
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
        width = 32 if q.shape[2] == k.shape[2] else 31
        at = torch.arange(k.shape[2], device=q.device)
        late = at[-q.shape[2] :, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(at <= late) & (at > late - width))
        return super().attend(q, k, v) * (1 - self.s) + self.s * (1 + self.g[:, None, None]) * y

    def flops_per_token(self, spec):
        return 2 * super().flops_per_token(spec)
