"""Hands dropout to SDPA without asking whether it trains.

Modelled on https://github.com/suno-ai/bark/pull/662
"""

import torch.nn.functional as F
from _base import GPT, Attention, Block

CAUGHT_BY = "evaluating twice gives the same"


class Plant(Attention):
    def attend(self, q, k, v, x):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
