"""Loses the causal mask on the path that dropout takes.

Modelled on https://github.com/keras-team/keras/issues/23038
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("mask_lost_with_dropout")
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

    def attend(self, q, k, v):
        if self.training and self.dropout:
            probs = F.dropout((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), self.dropout)
            y = super().attend(q, k, v)
            return y + self.s * self.g[:, None, None] * (probs @ v - y)
        y = super().attend(q, k, v)
        return y + self.s * self.g[:, None, None] * (v - y)
