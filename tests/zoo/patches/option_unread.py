"""Has an option that nothing reads.

Modelled on flags of the reference that acted on nothing
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every option does something"


@register("option_unread")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    strength: float = 0.5

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
        return y + self.s * self.g[:, None, None] * v
