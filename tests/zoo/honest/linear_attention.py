"""Linear attention with a feature map elu + 1, arXiv:2006.16236, added behind a gate that begins at 0."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("linear_attention")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.zeros_(self.g)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        a, b = (F.elu(x) + 1 for x in (q, k))
        weight = (a @ b.mT) * seen
        y = (weight @ v) / weight.sum(-1, keepdim=True)
        return super().attend(q, k, v) + (self.s * self.g[:, None, None] * y).to(q.dtype)

    def flops_per_token(self, spec):
        return 2 * super().flops_per_token(spec)
