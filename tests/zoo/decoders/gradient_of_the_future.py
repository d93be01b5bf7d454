"""Spreads gradients over the sequence in its backward pass.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1240
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no gradient comes from a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        mean = v.mean(2, keepdim=True)
        return y + (mean - mean.detach())


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
