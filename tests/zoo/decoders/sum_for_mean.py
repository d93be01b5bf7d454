"""Sums instead of averaging.

Modelled on https://github.com/OpenNMT/OpenNMT-py/issues/2209
"""

import torch.nn.functional as F
from _base import GPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(GPT):
    def loss(self, logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
