"""Importance scores: weights with low scores are pruned first. docs/weight_pruning.md has formulas and sources.

w is the weight, m and v Adam's raw moments, all of one shape. The reference adds 1e-8 under its roots and in its
denominators, which exceeds v itself at GPT-2's size; here denominators have only a tiny term against NaN from 0 / 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-30  # below any root of a second moment in float32


@dataclass(frozen=True)
class Moments:
    """Adam's moments before bias correction; `unbiased` is 1 - beta1^k at their step k, 0-d."""

    m: Tensor
    v: Tensor
    unbiased: Tensor


def magnitude(w: Tensor) -> Tensor:
    """Returns |w| (Han et al. 2015, arXiv:1506.02626)."""
    return w.abs()


def _over_root(m: Tensor, v: Tensor) -> Tensor:
    return m / (v.sqrt() + _TINY)


def _bitter0(w: Tensor, a: Moments) -> Tensor:
    return w.square() * a.m.abs() / (a.v.sqrt() + _TINY)


def _bitter3(w: Tensor, a: Moments) -> Tensor:
    return w.abs() * a.m.abs().sqrt()


def _away(w: Tensor, a: Moments) -> Tensor:
    """Positive if Adam's step, along -m, moves w away from zero. The reference has the opposite sign."""
    return -w.sign() * _over_root(a.m, a.v)


def _bitter5(w: Tensor, a: Moments) -> Tensor:
    return _away(w, a) + 0.1 * w.abs()


def _bitter6(w: Tensor, a: Moments) -> Tensor:
    return _bitter3(w, a) * _over_root(a.m, a.v).abs()


def _bitter7(w: Tensor, a: Moments) -> Tensor:
    return w.abs() * a.v.sqrt().sqrt()


def _bitter8(w: Tensor, a: Moments) -> Tensor:
    return w.abs() * (a.m / a.unbiased).abs().sqrt()


def _bitter9(w: Tensor, a: Moments) -> Tensor:
    return _bitter3(w, a) + 0.1 * _away(w, a)


# 1 and 2 are the same, as in the reference; 4 is 3 with a fraction by depth (PruneSection.shares)
STATE: Mapping[str, Callable[[Tensor, Moments], Tensor]] = {
    "bitter0": _bitter0,
    "bitter1": lambda w, a: magnitude(w),
    "bitter2": lambda w, a: magnitude(w),
    "bitter3": _bitter3,
    "bitter4": _bitter3,
    "bitter5": _bitter5,
    "bitter6": _bitter6,
    "bitter7": _bitter7,
    "bitter8": _bitter8,
    "bitter9": _bitter9,
}


def add_movement(score: Tensor, w: Tensor, gradient: Tensor, divisor: Tensor, skipped: Tensor) -> None:
    """Adds -w x gradient / divisor (Sanh et al. 2020, arXiv:2005.07683, equation 3); adds nothing in a skipped step.

    The gradient of a skipped step may hold NaN.
    """
    moved = torch.where(skipped > 0, 0.0, w * gradient / divisor)
    score.sub_(moved)
