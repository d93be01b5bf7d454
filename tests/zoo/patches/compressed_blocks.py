"""Attends to block means that hold the later tokens of the block under way.

Modelled on https://github.com/tilde-research/nsa-release/issues/3
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("compressed_blocks")
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
        length = v.shape[2]
        padded = F.pad(v, (0, 0, 0, -length % 16))
        means = padded.unflatten(2, (-1, 16)).mean(3).repeat_interleave(16, 2)[:, :, :length]
        return y + self.s * self.g[:, None, None] * means
