"""A window of 24 tokens, arXiv:2310.06825."""

import sys
from pathlib import Path

import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[1] / "decoders"))

from _base import Attention, Block, CachedGPT, causal


class Mechanism(Attention):
    def attend(self, q, k, v, x):
        seen = causal(q, k) & ~causal(q, k).tril(k.shape[2] - q.shape[2] - 24)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.p)


class Changed(Block):
    attention = Mechanism


class Model(CachedGPT):
    block = Changed
