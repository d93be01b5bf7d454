"""Its cache forgets the first token once it holds 40.

Modelled on https://github.com/rajveer43/VeloxQuant-MLX/issues/171
"""

from _base import Attention, Block, CachedGPT

CAUGHT_BY = "cached decoding equals the full forward"


class Plant(Attention):
    def attend(self, q, k, v, x):
        lost = int(q.shape[2] < k.shape[2] > 40)
        return super().attend(q, k[:, :, lost:], v[:, :, lost:], x)


class Planted(Block):
    attention = Plant


class Model(CachedGPT):
    block = Planted
