"""The mask holds the hidden positions, SDPA expects the visible ones.

Modelled on https://github.com/rasbt/LLMs-from-scratch/pull/1062
"""

import torch
import torch.nn.functional as F
from _base import GPT, Attention, Block, causal

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=~causal(q, k) | torch.eye(k.shape[2], dtype=torch.bool), dropout_p=self.p
        )


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
