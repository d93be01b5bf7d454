"""Moves a running mean in every forward pass of training, and subtracts it.

Modelled on ActNorm and whitening layers, https://github.com/cweniger/falcon/issues/115
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "a call leaves nothing behind"


@register("running_mean_in_forward")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.register_buffer("mean", torch.empty(spec.n_head, spec.head_dim))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        self.mean.zero_()

    def forward(self, y, v, x):
        if self.training:
            self.mean.lerp_(v.detach().mean((0, 2)), 0.1)
        return y + self.s * self.g[:, None, None] * (v - self.mean[:, None])
