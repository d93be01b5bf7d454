"""RWKV's token shift, arXiv:2305.13048: each channel blends a token with the one before."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("token_shift")
class Options(Patch):
    target: str = "blocks.*.attn.local"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    reach = 1

    def __init__(self, spec):
        super().__init__()
        self.mix = nn.Parameter(torch.empty(spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.uniform_(self.mix, generator=generator)
        self.s.fill_(1.0)

    def forward(self, x, before):
        shifted = torch.cat([before, x], dim=1)[:, :-1]
        return x + self.s * self.mix * (shifted - x)
