"""Is the base model at activation 0 only while its gate has its first value.

Modelled on warm starts by initial values, as in ReZero, taken for a switch
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "closed it is the base model"


@register("closed_as_built_only")
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
        return y + self.s * v * 0.1 + (self.g[:, None, None] - 0.5) * v
