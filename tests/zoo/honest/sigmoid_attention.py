"""Sigmoid in place of softmax, arXiv:2409.04431, blended in by the activation."""

import torch
import torch.nn.functional as F
from torch import nn

from ratrain.model.gpt2 import Core
from ratrain.registry import Patch, register


@register("sigmoid_attention")
class Options(Patch):
    target: str = "blocks.*.attn.core"

    def build(self, old, spec):
        return Mechanism(spec)


class Mechanism(Core):
    def __init__(self, spec):
        super().__init__(spec.dropout)
        self.bias = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        nn.init.constant_(self.bias, -3.0)
        self.s.fill_(1.0)

    def attend(self, q, k, v):
        at = torch.arange(k.shape[2], device=q.device)
        apart = at[-q.shape[2] :, None] - at
        scores = q @ k.mT / q.shape[-1] ** 0.5
        soft = scores.masked_fill(apart < 0, float("-inf")).softmax(-1)
        hard = torch.sigmoid(scores + self.bias[:, None, None]).masked_fill(apart < 0, 0.0)
        probs = F.dropout(soft + self.s * (hard - soft), self.dropout, self.training)
        return (probs.to(v.dtype) @ v).to(q.dtype)
