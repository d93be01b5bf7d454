"""Keeps a count of calls in an attribute and scales by it.

Modelled on https://github.com/cweniger/falcon/issues/115
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "a pass leaves nothing behind"


class Plant(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.calls = 0

    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        self.calls += self.training
        return y * (1 + self.calls)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
