"""A norm per head after attention, as in differential attention, arXiv:2410.05258."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register


@register("output_norm")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(spec.head_dim))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.ones_(self.gain)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        normed = F.rms_norm(y, y.shape[-1:]) * self.gain
        return y + self.s * (normed - y)
