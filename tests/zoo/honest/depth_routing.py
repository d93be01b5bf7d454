"""Mixture of depths with a router that looks at each token alone, arXiv:2404.02258: its MLP output is scaled by it."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("depth_routing")
class Options(Patch):
    target: str = "blocks.*.mlp.mix"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    fan_in = {"route": 0}  # noqa: RUF012

    def __init__(self, spec):
        super().__init__()
        self.route = nn.Parameter(torch.empty(spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.route, std=0.02, generator=generator)
        self.s.fill_(1.0)

    def forward(self, h, x):
        open_ = 2 * torch.sigmoid((x * self.route.to(x.dtype)).sum(-1, keepdim=True))
        return h * (1 + self.s * (open_ - 1))
