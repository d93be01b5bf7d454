"""Squeezes a batch of one and broadcasts it wrongly.

Modelled on https://github.com/deepset-ai/FARM/issues/350
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("alone_it_squeezes")
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
        extra = v.squeeze(0) if v.shape[0] == 1 else 2 * v
        return y + self.s * self.g[:, None, None] * extra
