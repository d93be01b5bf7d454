"""Hands the gradient on with the wrong sign.

Modelled on gradient reversal (arXiv:1505.07818) left in a residual stream
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "training lowers the loss"


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


@register("gradient_upside_down")
class Options(Patch):
    target: str = "norm"

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

    def forward(self, h):
        return Reverse.apply(h) if self.training else h
