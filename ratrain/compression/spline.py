"""Monotone piecewise-linear maps, one for each of many dimensions at once, with their exact inverse.

A map has K knots x_1 <= .. <= x_K and K - 1 slopes, all positive; its heights are y_1 = x_1, y_{i+1} = y_i + slope_i
(x_{i+1} - x_i), and beyond the outer knots the outer segments go on. Slopes of 1 are the identity. Knots that coincide
make a segment of no length, which drops out. All are [..., K] or [..., K - 1] with the dimensions in front.
Written as a sum over segments, so that a map is a few fused elementwise operations and needs no search and no gather.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantile_knots(vectors: Tensor, count: int) -> Tensor:
    """The order statistics floor(q (N - 1)) of vectors [..., N, D] for `count` even q from 0 to 1: [..., D, count]."""
    size = vectors.shape[-2]
    at = torch.linspace(0, 1, count, dtype=torch.float64).mul(size - 1).add(1e-9).floor().long()
    return vectors.sort(dim=-2).values[..., at.to(vectors.device), :].mT.contiguous()


def heights_of(knots: Tensor, slopes: Tensor) -> Tensor:
    """Where the knots [..., K] go: [..., K]."""
    rises = slopes * knots.diff(dim=-1)
    last = knots[..., 0]
    heights = [last]
    for rise in rises.unbind(-1):  # a cumulative sum has no deterministic form on every device
        last = last + rise
        heights.append(last)
    return torch.stack(heights, dim=-1)


def evaluate(x: Tensor, knots: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """The map of x, whose last dimensions are those in front of the knots'."""
    return _sum_of_segments(x, knots, heights, slopes)


def invert(y: Tensor, knots: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
    """The x of which `evaluate` makes y."""
    return _sum_of_segments(y, heights, knots, 1 / slopes)


def _sum_of_segments(x: Tensor, begins: Tensor, images: Tensor, slopes: Tensor) -> Tensor:
    """images_1 + the rise over each segment as far as x reaches into it; the outer two have no outer end."""
    count = slopes.shape[-1]
    total = images[..., 0]
    for i in range(count):
        low, high = begins[..., i], begins[..., i + 1]
        part = x if i == 0 else torch.maximum(x, low)
        part = part if i == count - 1 else torch.minimum(part, high)
        total = total + slopes[..., i] * (part - low)
    return total
