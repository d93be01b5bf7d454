"""After a prompt, masks new queries as if they were the first.

Modelled on https://github.com/pytorch/pytorch/issues/108108
"""

import torch.nn.functional as F
from _base import Attention, Block, CachedGPT

CAUGHT_BY = "cached decoding equals the full forward"


class Plant(Attention):
    def attend(self, q, k, v, x):
        if 1 < q.shape[2] < k.shape[2]:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return super().attend(q, k, v, x)


class Planted(Block):
    attention = Plant


class Model(CachedGPT):
    block = Planted
