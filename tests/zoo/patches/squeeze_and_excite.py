"""Gates hidden channels by their mean over the sequence.

Modelled on squeeze-and-excitation, arXiv:1709.01507, put into a decoder's MLP
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("squeeze_and_excite")
class Options(Patch):
    target: str = "blocks.*.mlp.mix"

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

    def forward(self, h, x):
        return h * (1 + self.s * self.g[0] * torch.sigmoid(h.mean(1, keepdim=True)))
