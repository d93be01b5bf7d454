"""Sums gates from the end of the sequence, not from its start.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1240
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("decay_from_the_end")
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
        gates = torch.sigmoid(v.mean(-1, keepdim=True))
        return y + self.s * self.g[:, None, None] * v * gates.flip(2).cumsum(2).flip(2) / v.shape[2]
