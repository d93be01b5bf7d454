"""Averages each row, then the rows, whatever they count.

Modelled on https://github.com/meta-pytorch/torchtune/pull/1875
"""

import torch
import torch.nn.functional as F
from _base import GPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(GPT):
    def loss(self, logits, targets):
        rows = [F.cross_entropy(x, t, ignore_index=-1) for x, t in zip(logits, targets, strict=True)]
        return torch.stack(rows).mean()
