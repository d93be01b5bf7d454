"""Draws a projection when it is first called, and saves it nowhere.

Modelled on lazily made random features, as in early Performer ports (arXiv:2009.14794)
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "loading a checkpoint restores the outputs"


@register("drawn_at_first_call")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.drawn = None

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        if self.drawn is None:
            self.drawn = torch.randn(v.shape[-1], dtype=torch.float64).to(v.device)
        return y + self.s * self.g[:, None, None] * v * self.drawn.to(v.dtype)
