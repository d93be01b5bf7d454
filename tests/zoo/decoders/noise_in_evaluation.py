"""Adds noise in every pass.

Modelled on noise layers that ignore eval()
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "evaluating twice gives the same"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + 0.1 * torch.randn_like(y)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
