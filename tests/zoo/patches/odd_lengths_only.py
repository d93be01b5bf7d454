"""Sees the future if the length is no multiple of a block of 64.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1272; the rest of a chunked kernel
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("odd_lengths_only")
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
        extra = v.mean(2, keepdim=True) if v.shape[2] % 64 else v[:, :, :1]
        return y + self.s * self.g[:, None, None] * extra
