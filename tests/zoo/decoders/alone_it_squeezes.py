"""Takes another path for a batch of one.

Modelled on https://github.com/deepset-ai/FARM/issues/350
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no sequence sees another"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return 2 * y if v.shape[0] == 1 else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
