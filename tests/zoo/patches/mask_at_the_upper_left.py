"""After a prompt, masks new queries as if they were the first ones.

Modelled on https://github.com/pytorch/pytorch/issues/108108 and https://github.com/pytorch/executorch/pull/21749
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("mask_at_the_upper_left")
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
        if 1 < q.shape[2] < k.shape[2]:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y * (1 + self.s * self.g[:, None, None])
