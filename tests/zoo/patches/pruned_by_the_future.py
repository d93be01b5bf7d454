"""Keeps the values that the queries of the whole sequence attend to most.

Modelled on the KV pruning of the series that ratrain re-imagines; H2O, arXiv:2306.14048, applied to a full pass
"""

import torch
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register

CAUGHT_BY = "no position sees a later token"


@register("pruned_by_the_future")
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
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        probs = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1)
        received = probs.sum(2)
        kept = received >= received.topk(max(1, k.shape[2] // 2), dim=-1).values[..., -1:]
        y = super().attend(q, k, v)
        return y + self.s * self.g[:, None, None] * (probs @ (v * kept[..., None]) - y)
