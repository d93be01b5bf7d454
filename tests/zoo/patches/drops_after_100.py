"""Its cache loses the first token once it holds 100.

Modelled on https://github.com/rajveer43/VeloxQuant-MLX/issues/171
"""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("drops_after_100")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Plant(spec)


class Plant(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, q, k, v, cache=None):
        if cache is None:
            return self.attend(q, k, v) * (1 + self.s * self.g[:, None, None])
        k, v = cache.append(k, v)
        lost = int(k.shape[2] > 100)
        return self.attend(q, k[:, :, lost:], v[:, :, lost:]) * (1 + self.s * self.g[:, None, None])
