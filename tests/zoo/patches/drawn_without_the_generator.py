"""Draws its first values from torch's global generator.

Modelled on initialisers that ignore the generator they are given
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "the same seed gives the same losses"


@register("drawn_without_the_generator")
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
        nn.init.uniform_(self.g)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * v
