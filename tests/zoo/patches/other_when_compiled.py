"""Computes another function when compiled.

Modelled on a fallback for torch.compile that forgets a scale
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "compiled it computes the same and sees no later token"


@register("other_when_compiled")
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
        return y + self.s * self.g[:, None, None] * (2 * v if torch.compiler.is_compiling() else v)
