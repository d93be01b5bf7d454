"""Detaches its gate.

Modelled on a gate computed under no_grad or detached for logging, and used so
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every parameter gets a gradient"


@register("gate_detached")
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
        return y + self.s * self.g.detach()[:, None, None] * v
