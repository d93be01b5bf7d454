"""ALiBi, arXiv:2108.12409."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "decoders"))

from _base import Attention, Block, CachedGPT


class Mechanism(Attention):
    def __init__(self, config):
        super().__init__(config)
        self.slope = nn.Parameter(-torch.arange(1.0, config.n_head + 1))

    def attend(self, q, k, v, x):
        at = torch.arange(k.shape[2])
        apart = (at[-q.shape[2] :, None] - at).to(q.dtype)
        bias = (-self.slope[:, None, None].exp() * apart).masked_fill(apart < 0, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=self.p)


class Changed(Block):
    attention = Mechanism


class Model(CachedGPT):
    block = Changed
