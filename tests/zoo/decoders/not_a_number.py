"""Divides by 0.

Modelled on an empty mean
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "its logits are numbers"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y / (y - y).sum()


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
