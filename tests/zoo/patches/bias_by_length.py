"""Positions that depend on how long the sequence is.

Modelled on ALiBi built over the length of the call, https://github.com/keras-team/keras-hub/issues/2861
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("bias_by_length")
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
        left = (y.shape[2] - 1 - torch.arange(y.shape[2], device=y.device))[:, None] / 256
        return y + self.s * self.g[:, None, None] * left * v
