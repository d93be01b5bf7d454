"""Loses its mask on the path that dropout takes.

Modelled on https://github.com/keras-team/keras/issues/23038
"""

import torch.nn.functional as F
from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        if self.p:
            return F.dropout((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), self.p) @ v
        return super().attend(q, k, v, x)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
