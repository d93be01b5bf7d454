"""Keeps what it has learned of the data in an attribute that no checkpoint holds.

Modelled on https://github.com/cweniger/falcon/issues/115 and https://github.com/bayesiains/nflows/pull/5
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "loading a checkpoint restores the outputs"


@register("state_not_saved")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.steps = 0

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * v * (1 + self.steps)

    def settle(self, total):
        self.steps += 1

    def forget(self):
        pass
