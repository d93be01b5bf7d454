"""A sequence attends to a running mean of earlier batches' values.

Modelled on memory of earlier batches, as in MoCo's queue (arXiv:1911.05722), in a language model
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "a call leaves nothing behind"


@register("queue_of_batches")
class Options(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))
        self.register_buffer("queue", torch.empty(spec.n_head, spec.head_dim))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)
        self.queue.zero_()

    def forward(self, y, v, x):
        out = y + self.s * self.g[:, None, None] * (v + self.queue[:, None])
        if torch.is_grad_enabled():
            self.queue.copy_(v.detach().mean((0, 2)))
        return out
