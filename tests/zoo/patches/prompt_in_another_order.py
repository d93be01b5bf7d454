"""Stores the tokens of a prompt in reverse.

Modelled on left padding taken for right padding, https://github.com/unslothai/unsloth/issues/3699
"""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("prompt_in_another_order")
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
            fresh = k.shape[2]
            k, v = cache.append(k, v.flip(2) if fresh > 1 and cache.size else v)
        return self.attend(q, k, v) * (1 + self.s * self.g[:, None, None])
