"""Divides logits by a temperature in the loss alone.

Modelled on temperature left in the loss, while sampling and evaluation take the logits as they are
"""

import torch.nn.functional as F
from _base import GPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(GPT):
    def loss(self, logits, targets):
        return F.cross_entropy(logits.flatten(0, 1) / 2, targets.flatten(), ignore_index=-1)
