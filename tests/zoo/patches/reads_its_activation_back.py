"""Keeps its activation as a Python number for which every step waits for the device.

Modelled on https://github.com/pytorch/pytorch/issues/158642
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "nothing is read back from the device"


@register("reads_its_activation_back")
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
        return y + float(self.s) * self.g[:, None, None] * v
