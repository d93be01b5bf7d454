"""Grouped queries: heads share keys and values in pairs, arXiv:2305.13245; the second of a pair is the first's, by the
activation."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("multi_query")
class Options(Patch):
    target: str = "blocks.*.attn.value"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.s.fill_(1.0)

    def forward(self, v, state):
        shared = v[:, ::2].repeat_interleave(2, dim=1)[:, : v.shape[1]]
        return v + self.s * (shared - v), state
