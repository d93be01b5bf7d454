"""Shifts labels that come shifted.

Modelled on https://github.com/huggingface/transformers/pull/37830
"""

import torch.nn.functional as F
from _base import GPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(GPT):
    def loss(self, logits, targets):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-1)
