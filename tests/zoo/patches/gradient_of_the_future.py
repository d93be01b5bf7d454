"""Its forward pass is causal; its backward pass spreads gradients over the sequence.

Modelled on https://github.com/fla-org/flash-linear-attention/issues/1240
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no gradient comes from a later token"


class Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad * x + grad.mean(2, keepdim=True) * x.mean(2, keepdim=True)


@register("gradient_of_the_future")
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
        return y + self.s * self.g[:, None, None] * Spread.apply(v)
