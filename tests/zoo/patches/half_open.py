"""Sees the future only while its activation moves from 0 to 1.

Modelled on https://github.com/Shwai-He/MEO/issues/2; an activation that is ramped up
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("half_open")
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
        return (
            y
            + (self.s * (1 - self.s) * self.g[:, None, None] * v.mean(2, keepdim=True))
            + self.s * self.g[:, None, None] * v
        )
