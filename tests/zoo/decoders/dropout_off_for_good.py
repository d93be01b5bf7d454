"""Sets dropout to 0 in evaluation and never back.

Modelled on https://github.com/NVIDIA/Megatron-LM/pull/411
"""

from _base import GPT, Attention, Block

CAUGHT_BY = "a pass leaves nothing behind"


class Plant(Attention):
    def attend(self, q, k, v, x):
        if not self.training:
            self.dropout = 0.0
        return super().attend(q, k, v, x)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
