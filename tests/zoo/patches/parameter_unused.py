"""Declares a parameter that nothing reads.

Modelled on layers that a refactoring left behind, which DDP's find_unused_parameters hides
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every parameter gets a gradient"


@register("parameter_unused")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.spare = nn.Parameter(torch.empty(4))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        nn.init.zeros_(self.spare)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * v
