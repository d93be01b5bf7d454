"""Sums gates from the end of the sequence.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1240
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + v * torch.sigmoid(v).flip(2).cumsum(2).flip(2) / v.shape[2]


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
