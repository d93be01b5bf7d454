"""A temperature per head on the scores, learned in log space."""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("value_temperature")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.log = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.zeros_(self.log)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        return super().attend((q * (self.s * self.log).exp()[:, None, None]).to(q.dtype), k, v)
