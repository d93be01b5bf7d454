"""Heads pick the tokens with the largest norms of the sequence.

Modelled on https://github.com/piotrpiekos/MoSA/issues/3
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        norms = v.norm(dim=-1)
        return y * (norms >= norms.median(-1, keepdim=True).values)[..., None]


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
