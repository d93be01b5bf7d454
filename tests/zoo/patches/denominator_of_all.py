"""Linear attention whose denominator sums over all tokens.

Modelled on https://github.com/EleutherAI/gpt-neo/pull/205
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("denominator_of_all")
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
        weight = v.mean(-1, keepdim=True).exp()
        return y + self.s * self.g[:, None, None] * (weight * v).cumsum(2) / weight.sum(2, keepdim=True)
