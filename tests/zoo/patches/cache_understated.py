"""Keeps queries in the cache as well, and does not say so.

Modelled on cross-layer and query caches whose bytes are quoted for keys and values alone
"""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "its cache is what it states"


@register("cache_understated")
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

    def forward(self, q, k, v, cache=None):
        if cache is not None:
            q_all, k, v = cache.append(q, k, v)
            y = self.attend(q_all[:, :, -q.shape[2] :], k, v)
        else:
            y = self.attend(q, k, v)
        return y * (1 + self.s * self.g[:, None, None])
