"""Sees the future if the length is no multiple of 32.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1272
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + v.mean(2, keepdim=True) if v.shape[2] % 32 else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
