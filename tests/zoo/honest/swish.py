"""A learned swish, arXiv:1710.05941, in place of GELU."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register


@register("swish")
class Options(Patch):
    target: str = "blocks.*.mlp.act"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.beta = nn.Parameter(torch.empty(()))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.constant_(self.beta, 1.702)
        self.s.fill_(1.0)

    def forward(self, h):
        base = F.gelu(h)
        return base + self.s * (h * torch.sigmoid(self.beta * h) - base)
