"""Scales otherwise in training.

Modelled on https://github.com/huggingface/transformers/issues/31468
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "training and evaluating compute the same"


class Plant(Attention):
    def attend(self, q, k, v, x):
        y = super().attend(q, k, v, x)
        return 1.5 * y if self.training else y


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
