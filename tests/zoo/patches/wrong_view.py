"""Reshapes instead of transposing, so that rows of a batch mix.

Modelled on heads flattened by view without transpose, as in early forks of minGPT
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("wrong_view")
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
        mixed = v.reshape(v.shape[2], v.shape[1], v.shape[0], v.shape[3]).permute(2, 1, 0, 3)
        return y + self.s * self.g[:, None, None] * mixed
