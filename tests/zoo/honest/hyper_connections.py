"""Hyper-connections, arXiv:2409.19606, reduced to two streams: the block's output is added with a learned weight to a
learned blend of its input."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register


@register("hyper_connections")
class Options(Patch):
    target: str = "blocks.*.mlp.down"

    def build(self, old, spec):
        return Mechanism(spec, old)


class Mechanism(nn.Module):
    def __init__(self, spec, old):
        super().__init__()
        self.weight, self.bias, self.std = old.weight, old.bias, old.std
        self.depth = nn.Parameter(torch.empty(spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.weight, std=self.std, generator=generator)
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.depth, 0.8)
        self.s.fill_(1.0)

    def forward(self, h, gate):
        y = F.linear(h, self.weight, self.bias)
        return y * (1 + self.s * (self.depth - 1))

    def flops_per_token(self, spec):
        return 2 * self.weight.numel()
