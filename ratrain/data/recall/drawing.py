"""Draws of the recall tasks: pure functions of a key and a counter, the same on every machine and numpy version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ratrain.config.recall import FIRST_KEY, key_count

BLANK, MARK = 0, 1
IGNORED = -1  # target of a token that has no answer


@dataclass(frozen=True)
class Shape:
    """The sizes of a row: T = `block_size` tokens, `pairs` P, at least `distance` tokens before an answer.

    `noise` is the probability that a filler token is a random value.
    """

    block_size: int
    vocab_size: int
    pairs: int
    distance: int
    noise: float

    @property
    def first_value(self) -> int:
        return FIRST_KEY + key_count(self.vocab_size)


class Draw:
    """Uniform draws by Philox4x64 (Salmon et al. 2011) with the key `seed`, from position `step` of `stream` on.

    Only its raw 64-bit words are used: numpy keeps those of a bit generator, but not the methods of a Generator.
    """

    def __init__(self, seed: int, *, step: int, stream: int, shape: Shape):
        self._words = np.random.Philox(key=seed % 2**128, counter=[0, 0, step, stream])
        self._shape = shape

    def uniform(self, *size: int) -> np.ndarray:
        """Draws from [0, 1), float64."""
        raw = self._words.random_raw(int(np.prod(size))).reshape(size)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, low: int, high: int, *size: int) -> np.ndarray:
        """Draws from low, ..., high - 1; int64."""
        return low + (self.uniform(*size) * (high - low)).astype(np.int64)

    def distinct(self, rows: int, count: int, of: int) -> np.ndarray:
        """Draws `count` distinct numbers below `of` in every row, in random order; int64 [rows, count]."""
        return self.uniform(rows, of).argsort(axis=1, kind="stable")[:, :count]

    def keys(self, rows: int, count: int) -> np.ndarray:
        """Draws `count` distinct keys in every row, int64 [rows, count]."""
        return FIRST_KEY + self.distinct(rows, count, self._shape.first_value - FIRST_KEY)

    def values(self, *size: int) -> np.ndarray:
        return self.integers(self._shape.first_value, self._shape.vocab_size, *size)

    def filler(self, rows: int) -> np.ndarray:
        """Draws rows of filler tokens: blanks, and values with the probability `noise`; int64 [rows, T]."""
        size = rows, self._shape.block_size
        return np.where(self.uniform(*size) < self._shape.noise, self.values(*size), BLANK)


def unanswered(rows: int, shape: Shape) -> np.ndarray:
    """Returns targets [rows, T] without an answer."""
    return np.full((rows, shape.block_size), IGNORED, dtype=np.int64)
