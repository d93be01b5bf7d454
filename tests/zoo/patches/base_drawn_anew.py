"""Builds its own projection in place of the base's, with other first values.

Modelled on wrappers that re-create a layer, https://github.com/huggingface/accelerate/issues/993
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "closed it is the base model"


@register("base_drawn_anew")
class Options(Patch):
    target: str = "blocks.*.mlp.up"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.n_hidden, spec.n_embd))
        self.bias = nn.Parameter(torch.empty(spec.n_hidden))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.normal_(self.weight, std=0.03, generator=generator)
        nn.init.zeros_(self.bias)
        self.s.fill_(1.0)

    def forward(self, x):
        return F.linear(x, self.weight * (1 + 0.1 * self.s), self.bias)

    def flops_per_token(self, spec):
        return 2 * self.weight.numel()
