"""Shifts labels twice.

Modelled on https://github.com/huggingface/transformers/issues/47394
"""

import torch.nn.functional as F
from _base import CachedGPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(CachedGPT):
    def loss(self, logits, labels):
        return F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten(), ignore_index=-100)
