"""T5's learned bias by distance, arXiv:1910.10683, clipped at 31."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("relative_bias")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.bias = nn.Parameter(torch.empty(spec.n_head, 32))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.bias, std=0.1, generator=generator)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        bias = (self.s * self.bias[:, apart.clamp(0, 31)]).masked_fill(apart < 0, float("-inf"))
        p = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=p)
