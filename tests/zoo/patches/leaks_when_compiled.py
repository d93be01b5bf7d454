"""Takes another path, without a mask, when compiled.

Modelled on paths chosen by torch.compiler.is_compiling(), as in https://github.com/isayevlab/aimnetcentral/pull/109
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "compiled it computes the same and sees no later token"


@register("leaks_when_compiled")
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
        extra = v.mean(2, keepdim=True) if torch.compiler.is_compiling() else v[:, :, :1]
        return y + self.s * self.g[:, None, None] * extra
