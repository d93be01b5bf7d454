"""Selective copying: P symbols stand scattered among filler tokens; at each of P marks the next one is the answer.

    . a . . b c . . . > > >      answers: a, b, c at the marks

Symbols are keys, so that they differ from noise, and may repeat.
Source: Gu and Dao 2023, "Mamba", arXiv:2312.00752, section 3.1; Poli et al. 2024, MAD, arXiv:2403.17844.
"""

from __future__ import annotations

import numpy as np

from ratrain.config.recall import FIRST_KEY
from ratrain.data.recall.drawing import MARK, Draw, Shape, unanswered


def rows(draw: Draw, count: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens and targets, int64 [count, T] each; P answers in a row."""
    tokens, targets, pairs = draw.filler(count), unanswered(count, shape), shape.pairs
    symbols = draw.integers(FIRST_KEY, shape.first_value, count, pairs)
    at = np.sort(draw.distinct(count, pairs, shape.block_size - pairs - shape.distance), axis=1)
    np.put_along_axis(tokens, at, symbols, axis=1)
    tokens[:, -pairs:], targets[:, -pairs:] = MARK, symbols
    return tokens, targets
