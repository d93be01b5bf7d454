"""Returns heads of another width.

Modelled on a concatenation where a sum was meant
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "it runs forward and backward"


@register("widens_the_heads")
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
        return torch.cat([y, self.s * self.g[:, None, None] * v], dim=-1)
