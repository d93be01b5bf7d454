"""Counts positions from 0 in every call.

Modelled on https://github.com/lucidrains/rotary-embedding-torch/issues/11
"""

from _base import CachedGPT

CAUGHT_BY = "cached decoding equals the full forward"


class Model(CachedGPT):
    def start(self, past):
        return 0
