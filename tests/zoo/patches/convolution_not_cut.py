"""Pads a convolution on both sides and does not cut its end off.

Modelled on https://github.com/state-spaces/mamba/issues/437
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("convolution_not_cut")
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
        before, after = F.pad(v, (0, 0, 1, 0))[:, :, :-1], F.pad(v, (0, 0, 0, 1))[:, :, 1:]
        return y + self.s * self.g[:, None, None] * (before + v + after) / 3
