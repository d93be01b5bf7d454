"""Draws a buffer and leaves it out of checkpoints.

Modelled on https://github.com/sgl-project/SpecForge/pull/703
"""

import torch
from _base import GPT, Attention, Block

CAUGHT_BY = "loading a checkpoint restores the outputs"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("noise", torch.randn(config.n_embd // config.n_head), persistent=False)

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return y * self.noise


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
