"""A learned score that softmax may send its weight to, as in gpt-oss."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("learned_sink")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.sink = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.zeros_(self.sink)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(apart < 0, float("-inf"))
        lse = (
            scores.float().logsumexp(-1, keepdim=True)
            if scores.dtype == torch.bfloat16
            else scores.logsumexp(-1, keepdim=True)
        )
        kept = torch.sigmoid(lse - self.sink[:, None, None])
        probs = F.dropout((scores - lse).exp(), self.dropout, self.training)
        return ((1 + self.s * (kept - 1)) * (probs.to(v.dtype) @ v)).to(q.dtype)
