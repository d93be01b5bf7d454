"""Reads a number back from the device, which ends the graph.

Modelled on https://github.com/pytorch/pytorch/issues/158642
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "one graph each to train and to evaluate wherever the activation stands"


@register("reads_its_gate_back")
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
        return y if self.s.item() == 0 else y + self.s * self.g[:, None, None] * v
