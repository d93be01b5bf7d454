"""Tokens of all sequences compete for one capacity.

Modelled on GShard's capacity, arXiv:2006.16668, filled in the order of the batch
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("capacity_of_the_batch")
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
        wanted = (v.mean(-1) > 0).to(v.dtype).transpose(0, 1).flatten(1)
        place = wanted.cumsum(-1).unflatten(1, (v.shape[0], v.shape[2])).transpose(0, 1)
        return y + self.s * self.g[:, None, None] * v * (place <= v.shape[2] // 2)[..., None]
