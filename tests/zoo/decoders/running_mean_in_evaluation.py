"""Subtracts a running mean in evaluation alone.

Modelled on https://github.com/hulianyuyy/CorrNet/issues/61
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "a pass leaves nothing behind"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.n_head, config.n_embd // config.n_head))

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        if self.training:
            self.mean.lerp_(v.detach().mean((0, 2)), 0.5)
            return y
        return y - self.mean[:, None]


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
