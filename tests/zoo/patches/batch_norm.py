"""Normalises values over the batch in training.

Modelled on https://github.com/hulianyuyy/CorrNet/issues/61
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("batch_norm")
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
        over = (v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt() if self.training else v
        return y + self.s * self.g[:, None, None] * over
