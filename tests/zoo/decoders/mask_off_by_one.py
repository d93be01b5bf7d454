"""Sees the next token.

Modelled on https://github.com/karpathy/nanoGPT/issues/331
"""

import torch.nn.functional as F
from _base import GPT, Attention, Block, causal

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        seen = causal(q, k).roll(-1, 0)
        seen[-1] = True
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.p)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
