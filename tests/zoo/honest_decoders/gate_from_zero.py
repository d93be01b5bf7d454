"""A second attention behind a gate that begins at 0."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "decoders"))

from _base import Attention, Block, CachedGPT


class Mechanism(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.g = nn.Parameter(torch.zeros(1))

    def attend(self, q, k, v, x):
        return super().attend(q, k, v, x) + self.g * super().attend(q, k, v.flip(-1), x)


class Changed(Block):
    attention = Mechanism


class Model(CachedGPT):
    block = Changed
