"""Retention, arXiv:2307.08621: no softmax, a decay per head."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("retention")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.decay = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.constant_(self.decay, 3.0)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        seen = apart >= 0
        log = F.logsigmoid(self.decay)[:, None, None] * apart.clamp(min=0)
        weight = (q @ k.mT) * log.exp().to(q.dtype) * seen / q.shape[-1] ** 0.5
        weight = F.dropout(weight, self.dropout, self.training)
        y = super().attend(q, k, v)
        return (y + self.s * ((weight.to(v.dtype) @ v) - y)).to(q.dtype)

    def flops_per_token(self, spec):
        return 2 * super().flops_per_token(spec)
