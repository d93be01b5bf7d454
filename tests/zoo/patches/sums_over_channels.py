"""A gate per token that sums over all channels and does not say so: drawn and moved as a vector, it grows with them.

Modelled on routers and gates of one output under muP, which are output weights there, arXiv:2203.03466, table 8
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "its learning rates transfer or it is refused by name"


@register("sums_over_channels")
class Options(Patch):
    target: str = "blocks.*.mlp.mix"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.u = nn.Parameter(torch.empty(spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.u, std=0.1, generator=generator)
        self.s.fill_(1.0)

    def forward(self, h, x):
        return h * (1 + self.s * (x * self.u.to(x.dtype)).sum(-1, keepdim=True))
