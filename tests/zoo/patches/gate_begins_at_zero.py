"""Adds the mean of all values behind a gate that begins at 0, so that nothing shows before the first step.

Modelled on https://github.com/Shwai-He/MEO/issues/2 behind a gate as in ReZero, arXiv:2003.04887
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("gate_begins_at_zero")
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
        self.g.fill_(0.0)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * v.mean(2, keepdim=True)
