"""Sets dropout to 0 when it evaluates, and never back.

Modelled on https://github.com/NVIDIA/Megatron-LM/pull/411
"""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "a call leaves nothing behind"


@register("dropout_off_for_good")
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
        if not self.training:
            self.dropout = 0.0
        y = super().attend(q, k, v)
        return y + self.s * self.g[:, None, None] * F.dropout(v[:, :, -q.shape[2] :], self.dropout, self.training)
