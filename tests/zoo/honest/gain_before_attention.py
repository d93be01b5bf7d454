"""A gain per channel on the norm's output, fp32 and one-dimensional, as a newcomer would write it."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register


@register("gain_before_attention")
class Options(Patch):
    target: str = "blocks.*.norm_1"

    def build(self, old, spec):
        return Mechanism(spec, old)


class Mechanism(nn.Module):
    def __init__(self, spec, old):
        super().__init__()
        self.weight, self.bias = old.weight, old.bias
        self.gain = nn.Parameter(torch.empty(spec.n_embd))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.gain, 0.9)
        self.s.fill_(1.0)

    def forward(self, h):
        base = F.layer_norm(h.to(self.weight.dtype), h.shape[-1:], self.weight, self.bias)
        return base * (1 + self.s * (self.gain - 1))
