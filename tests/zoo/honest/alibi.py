"""ALiBi: a penalty on distance, with a slope per head, arXiv:2108.12409."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("alibi")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.slope = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.slope.copy_(2.0 ** -torch.arange(1.0, len(self.slope) + 1))
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        bias = (-self.s * self.slope[:, None, None] * apart).masked_fill(apart < 0, float("-inf"))
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=p)
