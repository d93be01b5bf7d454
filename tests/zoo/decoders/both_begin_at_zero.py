"""Two factors that both begin at 0 never get a gradient.

Modelled on LoRA with both factors at zero (arXiv:2106.09685 begins one with noise)
"""

import torch
from _base import GPT, Attention, Block
from torch import nn

CAUGHT_BY = "every parameter gets a gradient"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.g = nn.Parameter(torch.zeros(1))
        self.h = nn.Parameter(torch.zeros(1))

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + self.g * self.h * v


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
