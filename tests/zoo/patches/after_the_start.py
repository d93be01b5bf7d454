"""Sees the future once its running count of calls has passed 3.

Modelled on https://github.com/Shwai-He/MEO/issues/2, behind a warm-up that counts calls
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("after_the_start")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.register_buffer("count", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        self.count.zero_()

    def forward(self, y, v, x):
        if self.training:
            self.count += 1
        extra = torch.where(self.count > 3, v.mean(2, keepdim=True), v)
        return y + self.s * self.g[:, None, None] * extra
