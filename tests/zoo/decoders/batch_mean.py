"""Adds the mean over the batch behind a gate that begins at 0.

Modelled on https://github.com/arimousa/DDAD/issues/20
"""

import torch
from _base import GPT, Attention, Block
from torch import nn

CAUGHT_BY = "no sequence sees another"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.g = nn.Parameter(torch.zeros(1))

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + self.g * v.mean(0, keepdim=True)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
