"""Induction: a sequence of P + 1 distinct symbols occurs twice; each of its tokens predicts the next one.

    . . a b c d . . . a b c d .      answers: b at the second a, c at b, d at c

Source: Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv:2209.11895 (repeated random tokens).
"""

from __future__ import annotations

import numpy as np

from ratrain.data.recall.drawing import Draw, Shape, unanswered


def rows(draw: Draw, count: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens and targets, int64 [count, T] each; P answers in a row."""
    tokens, targets = draw.filler(count), unanswered(count, shape)
    sequence = draw.keys(count, shape.pairs + 1)
    length = sequence.shape[1]
    spare = shape.block_size - 2 * length - shape.distance  # filler tokens before, between and after, beside `distance`
    cuts = np.sort(draw.integers(0, spare + 1, count, 2), axis=1)
    within = np.arange(length)
    first, second = cuts[:, :1] + within, cuts[:, 1:] + length + shape.distance + within
    np.put_along_axis(tokens, first, sequence, axis=1)
    np.put_along_axis(tokens, second, sequence, axis=1)
    np.put_along_axis(targets, second[:, :-1], sequence[:, 1:], axis=1)
    return tokens, targets
