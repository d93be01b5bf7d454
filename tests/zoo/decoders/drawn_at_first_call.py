"""Draws a buffer at its first call and saves it nowhere.

Modelled on lazily made random features, Performer ports (arXiv:2009.14794)
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "loading a checkpoint restores the outputs"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.drawn = None

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        if self.drawn is None:
            self.drawn = torch.randn(v.shape[-1], dtype=v.dtype)
        return y + v * self.drawn


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
