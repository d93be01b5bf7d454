"""Attention over the last 48 tokens, as in Mistral 7B, arXiv:2310.06825; one learned scale a head."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("sliding_window")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.scale_ = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.ones_(self.scale_)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        far = (apart >= 48) & (self.s > 0)
        bias = torch.zeros_like(apart, dtype=q.dtype).masked_fill((apart < 0) | far, float("-inf"))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p)
        return y * (1 + self.s * (self.scale_[:, None, None] - 1)).to(y.dtype)
