"""Rounds values by the largest of the sequence.

Modelled on LLM.int8, arXiv:2208.07339, with one scale a tensor
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        scale = v.abs().amax((1, 2, 3), keepdim=True) / 127
        return y + (v / scale).round().detach() * scale * 0.1 + 0 * v


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
