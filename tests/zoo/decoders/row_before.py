"""The first token of a row sees the last of the row before.

Modelled on https://github.com/huggingface/transformers/issues/47394
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "no sequence sees another"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        flat = v.transpose(1, 2).flatten(0, 1)
        return y + flat.roll(1, 0).unflatten(0, (v.shape[0], v.shape[2])).transpose(1, 2)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
