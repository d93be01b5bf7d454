"""Mixes sequences in batches of four and more alone.

Modelled on https://github.com/Genentech/gReLU/issues/85; a path for larger batches
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("batch_of_four")
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
        extra = v.mean(0, keepdim=True) if v.shape[0] >= 4 else v
        return y + self.s * self.g[:, None, None] * extra
