"""Multiplies matrices and states no FLOPs.

Modelled on FLOP counts that miss a product, https://github.com/autoliuweijie/FastBERT/issues/14
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "its flops are those that are counted"


@register("hidden_product")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * (v @ v.new_ones(v.shape[-1], v.shape[-1]) / v.shape[-1])
