"""Offers a probe that is infinite.

Modelled on a ratio of norms whose denominator is 0
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "what it offers to be looked at is finite"


@register("probe_is_infinite")
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

    def probes(self):
        return {"ratio": self.g / 0}
