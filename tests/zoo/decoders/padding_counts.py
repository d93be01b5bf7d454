"""Divides by all targets, also those that do not count.

Modelled on https://github.com/huggingface/transformers/pull/34191
"""

import torch.nn.functional as F
from _base import GPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(GPT):
    def loss(self, logits, targets):
        return (
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum") / targets.numel()
        )
