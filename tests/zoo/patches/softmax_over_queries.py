"""Normalises scores over queries, so that a row depends on later ones.

Modelled on softmax(dim=-2) in place of dim=-1, a slip of the published reciprocal attention
"""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("softmax_over_queries")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Plant(spec)


class Plant(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(k.shape[2] - q.shape[2] + 1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -1e4)
        y = super().attend(q, k, v)
        return y + self.s * self.g[:, None, None] * (scores.softmax(-2).masked_fill(later, 0) @ v)
