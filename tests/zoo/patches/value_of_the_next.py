"""Blends each value with that of the next token.

Modelled on https://github.com/karpathy/nanoGPT/issues/331
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("value_of_the_next")
class Options(Patch):
    target: str = "blocks.*.attn.value"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, v, state):
        after = F.pad(v, (0, 0, 0, 1))[:, :, 1:]
        return v + self.s * self.g[:, None, None] * after, state
