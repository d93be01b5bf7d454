"""Takes a root at 0, whose gradient is infinite.

Modelled on the gradient of norm() and sqrt() at 0, https://github.com/pytorch/pytorch/issues/2421
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every parameter gets a gradient"


@register("root_of_zero")
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
        self.g.fill_(0.0)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y + self.s * (self.g * self.g).sum().sqrt() * v
