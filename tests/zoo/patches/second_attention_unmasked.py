"""Adds attention in the other direction without a mask.

Modelled on double attention of the published reciprocal line: SDPA(k, q, v)
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("second_attention_unmasked")
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
        y = super().attend(q, k, v)
        back = F.scaled_dot_product_attention(k, q, v) if q.shape == k.shape else y
        return y + self.s * self.g[:, None, None] * back
