"""Multiplies two factors that both begin at 0: neither ever gets a gradient.

Modelled on LoRA with both factors at zero (arXiv:2106.09685 begins one of them with noise)
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every parameter gets a gradient"


@register("both_begin_at_zero")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.h = nn.Parameter(torch.empty(spec.n_head))

    def reset_parameters(self, generator):
        self.g.fill_(0.0)
        self.s.fill_(1.0)
        nn.init.zeros_(self.h)

    def forward(self, y, v, x):
        return y + self.s * (self.g * self.h)[:, None, None] * v
