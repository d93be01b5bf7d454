"""Begins with logits that are far too large.

Modelled on an embedding left at std 1 and tied to the head, https://github.com/karpathy/nanoGPT/pull/21
"""

from _base import GPT
from torch import nn

CAUGHT_BY = "it begins with a loss"


class Model(GPT):
    def __init__(self, config):
        super().__init__(config)
        nn.init.normal_(self.wte.weight)
