"""Numbers tokens by calls, and a prompt is one call.

Modelled on cache_position inferred wrongly, https://github.com/huggingface/transformers/issues/36151
"""

import torch
from torch import nn

from ratrain.registry import Patch, register

CAUGHT_BY = "cached decoding equals the full forward"


@register("counts_calls")
class Options(Patch):
    target: str = "blocks.*.attn.pos"

    def build(self, old, spec):
        return Plant(spec)


class Plant(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.g = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.g.fill_(0.5)
        self.s.fill_(1.0)

    def forward(self, q, k, start):
        at = torch.arange(q.shape[2], device=q.device) if start == 0 else torch.tensor([start % 128], device=q.device)
        turn = 1 + self.s * self.g[:, None, None] * torch.cos(0.1 * at)[:, None]
        return q * turn, k * turn
