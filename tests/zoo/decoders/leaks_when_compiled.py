"""Takes another path when compiled.

Modelled on https://github.com/isayevlab/aimnetcentral/pull/109, which gates paths so
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "compiled it computes the same"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y + v.mean(2, keepdim=True) if torch.compiler.is_compiling() else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
