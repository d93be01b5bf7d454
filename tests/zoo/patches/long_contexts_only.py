"""Sees the future in contexts of more than 128 tokens.

Modelled on https://github.com/Shwai-He/MEO/issues/2, on a path for long contexts
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("long_contexts_only")
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
        extra = v.mean(2, keepdim=True) if v.shape[2] > 128 else v[:, :, :1]
        return y + self.s * self.g[:, None, None] * extra
