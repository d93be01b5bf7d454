"""Subtracts a running mean in evaluation alone.

Modelled on batch norm's two modes; https://github.com/hulianyuyy/CorrNet/issues/61
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "evaluating computes what was trained"


@register("running_mean_in_evaluation")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.register_buffer("mean", torch.empty(spec.n_head, spec.head_dim))
        self.seen = None

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        self.mean.zero_()

    def forward(self, y, v, x):
        if self.training:
            self.seen = v.detach().mean((0, 2))
            return y + self.s * self.g[:, None, None] * v
        return y + self.s * self.g[:, None, None] * (v - self.mean[:, None])

    @torch.no_grad()
    def settle(self, total):
        self.mean.lerp_(self.seen, 0.1)

    def forget(self):
        self.seen = None
