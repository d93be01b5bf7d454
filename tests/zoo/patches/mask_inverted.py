"""Hands SDPA a mask of the hidden positions instead of the visible ones.

Modelled on https://github.com/rasbt/LLMs-from-scratch/pull/1062
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("mask_inverted")
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
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(k.shape[2] - q.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        return (1 - self.s) * super().attend(q, k, v) + self.s * self.g[:, None, None] * y
