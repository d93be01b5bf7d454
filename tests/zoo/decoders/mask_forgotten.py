"""Takes the causal mask only if another mask is given.

Modelled on https://github.com/facebookresearch/xformers/issues/103
"""

import torch.nn.functional as F
from _base import GPT, Attention, Block

CAUGHT_BY = "no position sees a later token"


class Plant(Attention):
    def attend(self, q, k, v, x):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p)


class Planted(Block):
    attention = Plant


class Model(GPT):
    block = Planted
