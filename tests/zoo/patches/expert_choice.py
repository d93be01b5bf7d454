"""Each head picks the tokens with the largest norms of the whole sequence.

Modelled on https://github.com/piotrpiekos/MoSA/issues/3
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("expert_choice")
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
        norms = v.norm(dim=-1)
        least = norms.topk(max(1, v.shape[2] // 2), dim=-1).values[..., -1:]
        return y + self.s * self.g[:, None, None] * v * (norms >= least)[..., None]
