"""Layer scale, arXiv:2103.17239: a gain per channel on attention's output, a plain fp32 parameter."""

import torch
from torch import nn

from ratrain.registry import Patch, register


@register("layer_scale")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(spec.n_head, 1, spec.head_dim))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.constant_(self.gain, 0.5)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y * (1 + self.s * (self.gain - 1))
