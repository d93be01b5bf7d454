"""Adds noise from a generator of its own in training.

Modelled on stochastic depth, arXiv:1603.09382, by Python's own random numbers
"""

import random

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "the same seed gives the same losses"


@register("noise_without_a_seed")
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
        noise = random.random() if self.training else 0.5
        return y + self.s * self.g[:, None, None] * noise * v
