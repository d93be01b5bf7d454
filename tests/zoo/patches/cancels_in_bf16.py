"""Adds a large number and takes it away again, which leaves bf16 nothing.

Modelled on offsets for numerical safety, https://github.com/huggingface/transformers/pull/29285
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "bf16 stays near fp32"


@register("cancels_in_bf16")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

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

    def forward(self, y, v, x):
        return y + 40 * self.s * self.g[:, None, None] * ((v + 64) - 64)
