"""Group-sequential looks at a study after every block of seeds: the share of the error rate that each look may use.

A spending function (Lan & DeMets 1983) fixes the error rate spent up to each look. The increment at a look becomes a
level for Dunnett's family there. Simulated studies without effects supply the overlap with earlier looks, so that a
study already rejected spends nothing again. Studentised effects do not depend on scale, arms or seeds, so the levels
hold for few degrees of freedom as well as for many. The marginal distribution at a look is the exact integral. Only the
overlap between looks is simulated, which leaves an error of about 0.001 in a level of 0.04. Two more approximations:
gaps in the table are ignored, and the equivalence tests use the same levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from ratrain.statistics.dunnett import Family

FIRST = 3  # seeds before the first look: two are too few to estimate a spread


def _obrien_fleming(fraction: float, alpha: float) -> float:
    from scipy.special import ndtr, ndtri

    return float(4 * ndtr(ndtri(alpha / 4) / math.sqrt(fraction)))  # alpha / 2 on each side


def _pocock(fraction: float, alpha: float) -> float:
    return alpha * math.log1p((math.e - 1) * fraction)


SPENDING: Mapping[str, Callable[[float, float], float]] = {"obrien_fleming": _obrien_fleming, "pocock": _pocock}


def look_times(planned: int) -> tuple[int, ...]:
    """Returns the looks, one after every seed from the third to the last planned one; none if fewer than three are
    planned."""
    return tuple(range(FIRST, planned + 1))


@lru_cache(maxsize=256)
def levels(arms: int, looks: tuple[int, ...], alpha: float, spending: str = "obrien_fleming") -> tuple[float, ...]:
    """Returns the level of the family of `arms` comparisons at each look.

    `looks` are numbers of seeds, the last one the planned number. With these levels a study without effects claims an
    effect at any look with probability `alpha`. Raises ValueError for an unknown `spending`, and for looks that are
    empty, do not increase, or begin below two seeds.
    """
    if spending not in SPENDING:
        raise ValueError(f"spending is one of {', '.join(SPENDING)}, got {spending!r}")
    if not looks or looks[0] < 2 or any(b <= a for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks are growing numbers of seeds, two at least, got {looks}")
    if len(looks) == 1:
        return (alpha,)
    spent = [SPENDING[spending](seeds / looks[-1], alpha) for seeds in looks]
    p = _null_p(arms, looks)
    rejected, found = np.zeros(p.shape[1], dtype=bool), []
    for look, new in enumerate(np.diff(spent, prepend=0.0).tolist()):
        earlier = np.sort(p[look][rejected])
        level = _with_overlap(new, earlier, p.shape[1])
        rejected |= p[look] <= level
        found.append(level)
    return tuple(found)


def _with_overlap(new: float, earlier: np.ndarray, studies: int) -> float:
    """Returns the level that newly rejects the fraction `new` of all studies; `earlier` are the p-values of studies
    rejected before."""
    level, last = new, -1.0
    while level > last:
        last, level = level, new + float(np.searchsorted(earlier, level, side="right")) / studies
    return level


def _null_p(arms: int, looks: tuple[int, ...]) -> np.ndarray:  # [L, M]
    """Returns the smallest adjusted p-value at each look of M simulated studies without effects."""
    seeds, rng = looks[-1], np.random.default_rng(0)
    studies = int(np.clip(4e6 / ((arms + 1) * seeds), 10_000, 100_000))
    # residuals of the arm + seed model do not depend on the arm and seed effects, so pure noise is simulated
    y = rng.standard_normal((seeds, arms + 1, studies), dtype=np.float32)
    total, squares, rows = np.zeros((arms + 1, studies)), np.zeros(studies), np.zeros(studies)
    found = []
    for seed in range(1, seeds + 1):
        block = y[seed - 1]
        total += block
        squares += (block**2).sum(0)
        rows += block.sum(0) ** 2
        if seed in looks:
            all_ = total.sum(0)
            rss = squares - (total**2).sum(0) / seed - rows / (arms + 1) + all_**2 / (seed * (arms + 1))
            df = arms * (seed - 1)
            largest = np.abs(total[1:] - total[0]).max(0) / np.sqrt(2 * seed * rss / df)
            found.append(_p_of(largest, Family.full(arms, df)))
    return np.stack(found)


def _p_of(largest: np.ndarray, family: Family) -> np.ndarray:
    """Interpolates the adjusted p-values of many t from those of 200 grid points."""
    grid = np.geomspace(0.3, 40.0, 200)
    return np.exp(np.interp(np.log(largest), np.log(grid), np.log(np.maximum(family.p(grid), 1e-14))))
