"""Shifts tokens over the flattened batch: the first of a row sees the last of the row before.

Modelled on https://github.com/huggingface/transformers/issues/47394
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no sequence sees another"


@register("row_before")
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
        flat = v.transpose(1, 2).flatten(0, 1)
        shifted = F.pad(flat, (0, 0, 0, 0, 1, 0))[:-1].unflatten(0, (v.shape[0], v.shape[2])).transpose(1, 2)
        return y + self.s * self.g[:, None, None] * shifted
