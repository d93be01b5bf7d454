"""Puts a summary of the sequence into its first position.

Modelled on registers, arXiv:2309.16588, that an encoder fills
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("summary_in_front")
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
        first = torch.zeros_like(v)
        first[:, :, 0] = v.mean(2)
        return y + self.s * self.g[:, None, None] * first
