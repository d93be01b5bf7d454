"""An adapter of rank 4 behind the MLP, whose second factor begins at 0 (LoRA, arXiv:2106.09685)."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("low_rank_adapter")
class Options(Patch):
    target: str = "blocks.*.mlp.mix"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.a = nn.Parameter(torch.empty(spec.n_embd, 4))
        self.b = nn.Parameter(torch.empty(4, spec.n_hidden))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.a, std=0.02, generator=generator)
        nn.init.zeros_(self.b)
        self.s.fill_(1.0)

    def forward(self, h, x):
        return h + self.s * (x @ self.a.to(x.dtype) @ self.b.to(x.dtype))

    def flops_per_token(self, spec):
        return 2 * (self.a.numel() + self.b.numel())
