"""Batch norm before the head.

Modelled on https://github.com/arimousa/DDAD/issues/20
"""

from _base import GPT
from torch import nn

CAUGHT_BY = "no sequence sees another"


class Model(GPT):
    def __init__(self, config):
        super().__init__(config)
        self.batch = nn.BatchNorm1d(config.n_embd)

    def last(self, h):
        return super().last(self.batch(h.mT).mT)
