"""Sees the future in the longest context alone.

Modelled on an unmasked path for full blocks
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + v.mean(2, keepdim=True) if v.shape[2] == 64 else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
