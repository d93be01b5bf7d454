"""Takes a root at 0.

Modelled on https://github.com/pytorch/pytorch/issues/2421
"""

import torch
from _base import GPT, Attention, Block
from torch import nn

CAUGHT_BY = "every parameter gets a gradient"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.g = nn.Parameter(torch.zeros(1))

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + (self.g * self.g).sum().sqrt() * v


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
