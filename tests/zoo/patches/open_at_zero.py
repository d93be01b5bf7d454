"""Stays open at activation 0.

Modelled on an activation flag that the forward pass forgets
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "closed it is the base model"


@register("open_at_zero")
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
        return y * (1 + self.g[:, None, None])
