"""A causal convolution over 4 tokens before attention, per channel, as in Primer (arXiv:2109.08668) and Mamba."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("causal_convolution")
class Options(Patch):
    target: str = "blocks.*.attn.local"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    reach = 3

    def __init__(self, spec):
        super().__init__()
        self.taps = nn.Parameter(torch.empty(4, spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.taps, std=0.2, generator=generator)
        self.s.fill_(1.0)

    def forward(self, x, before):
        wide = torch.cat([before, x], dim=1)
        mixed = sum(wide[:, at : at + x.shape[1]] * self.taps[at] for at in range(4))
        return x + self.s * mixed
