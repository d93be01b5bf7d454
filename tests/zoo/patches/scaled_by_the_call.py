"""Scales by the length of the call, not by the position.

Modelled on scalable softmax, arXiv:2501.19399, with the length of the batch for every row
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("scaled_by_the_call")
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
        return y * (1 + self.s * self.g[:, None, None] * torch.log(torch.tensor(1.0 + y.shape[2])))
