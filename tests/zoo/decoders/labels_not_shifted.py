"""Compares each token with itself.

Modelled on https://github.com/huggingface/transformers/issues/27517
"""

import torch.nn.functional as F
from _base import CachedGPT

CAUGHT_BY = "its loss is the cross-entropy of its logits"


class Model(CachedGPT):
    def loss(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
