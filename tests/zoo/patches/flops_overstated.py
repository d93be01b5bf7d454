"""States twice the FLOPs that it computes.

Modelled on FLOP formulas that are off by two, https://github.com/pytorch/torchtitan/pull/4366
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "its flops are those that are counted"


@register("flops_overstated")
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
        return y + self.s * self.g[:, None, None] * v

    def flops_per_token(self, spec):
        return 2 * spec.n_embd
