"""Divides by 0 for the first token and hides that by torch.where, whose gradient is NaN.

Modelled on https://docs.jax.dev/en/latest/faq.html, gradients contain NaN where using where
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "every parameter gets a gradient"


@register("division_behind_where")
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
        at = torch.arange(v.shape[2], device=v.device)[:, None].to(v.dtype)
        scaled = torch.where(at == 0, torch.zeros_like(v), self.g[:, None, None] * v / at)
        return y + self.s * scaled
