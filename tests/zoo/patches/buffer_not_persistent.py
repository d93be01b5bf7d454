"""Draws a buffer from the seed and leaves it out of checkpoints.

Modelled on https://github.com/sgl-project/SpecForge/pull/703
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "loading a checkpoint restores the outputs"


@register("buffer_not_persistent")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.register_buffer("noise", torch.empty(spec.head_dim), persistent=False)

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        self.noise.normal_(generator=generator)

    def forward(self, y, v, x):
        return y + self.s * self.g[:, None, None] * v * self.noise
