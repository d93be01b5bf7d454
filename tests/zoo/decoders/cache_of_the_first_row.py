"""Decodes every row with the first row's keys.

Modelled on https://github.com/huggingface/transformers/issues/46612
"""

from _base import CachedGPT

CAUGHT_BY = "cached decoding equals the full forward"


class Model(CachedGPT):
    def keep(self, past):
        return tuple(t[:1].expand_as(t) for t in past)
