"""RoPE, arXiv:2104.09864, on a quarter of the channels beside learned positions."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("rotary_beside_learned")
class Options(Patch):
    target: str = "blocks.*.attn.pos"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.turn = nn.Parameter(torch.empty(spec.head_dim // 4))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.turn.copy_(10.0 ** -torch.linspace(0, 4, len(self.turn)))
        self.s.fill_(1.0)

    def forward(self, q, k, start):
        at = start + torch.arange(q.shape[2], device=q.device)
        angle = self.s * at[:, None] * self.turn
        cos, sin = angle.cos(), angle.sin()

        def turned(x):
            a, b, rest = x.split([len(self.turn), len(self.turn), x.shape[-1] - 2 * len(self.turn)], dim=-1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)

        return turned(q), turned(k)
