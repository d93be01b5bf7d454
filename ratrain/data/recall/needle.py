"""Needle in a haystack: one of P key-value pairs, hidden among filler tokens, is asked for by the last token.

    . k1 v1 . . . k2 v2 . . k1      answer: v1 at the end

The other P - 1 pairs distract. Source: Mohtashami and Jaggi 2023, "Landmark Attention", arXiv:2305.16300 (passkey
retrieval); Kamradt 2023, "Needle In A Haystack".
"""

from __future__ import annotations

import numpy as np

from ratrain.data.recall.drawing import Draw, Shape, unanswered


def rows(draw: Draw, count: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens and targets, int64 [count, T] each; one answer in a row."""
    tokens, targets, pairs = draw.filler(count), unanswered(count, shape), shape.pairs
    keys, values = draw.keys(count, pairs), draw.values(count, pairs)
    spare = shape.block_size - 1 - shape.distance - 2 * pairs  # filler tokens among the pairs
    # a place per pair among all arrangements of pairs and filler tokens, each equally likely
    at = np.sort(draw.distinct(count, pairs, pairs + spare), axis=1) + np.arange(pairs)
    np.put_along_axis(tokens, at, keys, axis=1)
    np.put_along_axis(tokens, at + 1, values, axis=1)
    asked = draw.integers(0, pairs, count, 1)
    tokens[:, -1:] = np.take_along_axis(keys, asked, axis=1)
    targets[:, -1:] = np.take_along_axis(values, asked, axis=1)
    return tokens, targets
