"""Multi-query associative recall: key-value pairs, then every key once more; its value is the answer.

    k1 v1 k2 v2 ... kP vP  . . k2 . k1 ...      answers: v2 at k2, v1 at k1

The queries stand at random places of the remaining row. In the source they follow a power law, so that most come early;
here all distances are equally likely.
Source: Arora et al. 2023, "Zoology", arXiv:2312.04927, section 4 and appendix.
"""

from __future__ import annotations

import numpy as np

from ratrain.data.recall.drawing import Draw, Shape, unanswered


def rows(draw: Draw, count: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens and targets, int64 [count, T] each; P answers in a row."""
    tokens, targets, pairs = draw.filler(count), unanswered(count, shape), shape.pairs
    keys, values = draw.keys(count, pairs), draw.values(count, pairs)
    tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    begin = 2 * pairs + shape.distance
    at = begin + draw.distinct(count, pairs, shape.block_size - begin)
    np.put_along_axis(tokens, at, keys, axis=1)
    np.put_along_axis(targets, at, values, axis=1)
    return tokens, targets
