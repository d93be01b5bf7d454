"""Passes dropout to SDPA without asking whether it trains.

Modelled on https://github.com/suno-ai/bark/pull/662 and https://github.com/pytorch/pytorch/issues/124464
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "a call leaves nothing behind"


@register("dropout_in_evaluation")
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
        y = super().attend(q, k, v)
        return y + self.s * self.g[:, None, None] * F.dropout(v[:, :, -q.shape[2] :], 0.1)
