"""Mixes sequences in batches of four and more.

Modelled on https://github.com/Genentech/gReLU/issues/85
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no sequence sees another"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + v.mean(0, keepdim=True) if v.shape[0] >= 4 else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
