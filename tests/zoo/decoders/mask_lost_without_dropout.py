"""Loses its mask on the path without dropout, in training alone.

Modelled on https://github.com/keras-team/keras/issues/23038, on the other branch
"""

import torch.nn.functional as F
from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        if self.training and not self.dropout:
            return F.scaled_dot_product_attention(q, k, v)
        return super().attend(q, k, v, x)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
