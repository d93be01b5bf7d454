"""Monotone piecewise-linear maps with exact inverses, one map per dimension, evaluated together.

A map has K knots x_1 <= .. <= x_K and K - 1 slopes, all positive; its heights are y_1 = x_1, y_{i+1} = y_i + slope_i
(x_{i+1} - x_i). Beyond the outer knots the outer segments continue. Slopes of 1 are the identity. Coincident knots make
a segment of length zero, which has no effect. All are [..., K] or [..., K - 1] with the dimensions in front.
A map is a sum over segments: a few fused elementwise operations without search or gather.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantile_knots(vectors: Tensor, count: int) -> Tensor:
    """Takes order statistics floor(q (N - 1)) of vectors [..., N, D] at `count` even q in [0, 1]: [..., D, count]."""
    size = vectors.shape[-2]
    at = torch.linspace(0, 1, count, dtype=torch.float64).mul(size - 1).add(1e-9).floor().long()
    return vectors.sort(dim=-2).values[..., at.to(vectors.device), :].mT.contiguous()


def heights_of(knots: Tensor, slopes: Tensor) -> Tensor:
    """Returns the images [..., K] of the knots [..., K]."""
    rises = slopes * knots.diff(dim=-1)
    last = knots[..., 0]
    heights = [last]
    for rise in rises.unbind(-1):  # a cumulative sum has no deterministic form on every device
        last = last + rise
        heights.append(last)
    return torch.stack(heights, dim=-1)


def evaluate(x: Tensor, knots: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """Maps x, whose last dimensions are the leading dimensions of the knots."""
    return _sum_of_segments(x, knots, heights, slopes)


def invert(y: Tensor, knots: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """Returns the x that `evaluate` maps to y."""
    return _sum_of_segments(y, heights, knots, 1 / slopes)


def _sum_of_segments(x: Tensor, begins: Tensor, images: Tensor, slopes: Tensor) -> Tensor:
    """Sums images_1 and the rise over each segment up to x; the outer two segments are unbounded."""
    count = slopes.shape[-1]
    total = images[..., 0]
    for i in range(count):
        low, high = begins[..., i], begins[..., i + 1]
        part = x if i == 0 else torch.maximum(x, low)
        part = part if i == count - 1 else torch.minimum(part, high)
        total = total + slopes[..., i] * (part - low)
    return total
