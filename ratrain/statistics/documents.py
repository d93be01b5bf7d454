"""Means over documents, such as accuracies of tasks: their standard errors, and paired differences of two models."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ratrain.statistics.noise import evaluation_noise


class Mean(NamedTuple):
    """A mean over documents, or the difference of two, and its standard error (NaN for one document)."""

    value: float
    se: float


def mean_of(parts: ArrayLike, weights: ArrayLike) -> Mean:
    """Returns sum(parts) / sum(weights) over documents [K], with the error of that ratio.

    With weights of one it is the mean, and the error is sd / sqrt(K). Raises ValueError for other shapes.
    """
    return difference(np.zeros_like(np.asarray(parts, float)), parts, weights)


def difference(a: ArrayLike, b: ArrayLike, weights: ArrayLike) -> Mean:
    """Returns the mean of b minus that of a, sums by document [K] of two models on the same documents.

    The error is that of the paired differences: documents that both find hard cancel. Raises ValueError for other
    shapes.
    """
    x, y, n = (np.asarray(of, float) for of in (a, b, weights))
    value = float((y - x).sum() / n.sum())
    if len(n) < 2:
        return Mean(value, math.nan)
    return Mean(value, evaluation_noise([x / n], [y / n], n).se)
