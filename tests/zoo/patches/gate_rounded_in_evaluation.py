"""Opens a gate softly in training and hard in evaluation.

Modelled on hard gates at inference only, as in concrete dropout ports (arXiv:1712.01312)
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "evaluating computes what was trained"


@register("gate_rounded_in_evaluation")
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
        gate = torch.sigmoid(self.g)[:, None, None]
        return y + self.s * v * (gate if self.training else gate.round())
