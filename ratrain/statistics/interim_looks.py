"""Group-sequential looks at an arm after every block of seeds: the share of its error rate that each look may use.

A spending function (Lan & DeMets 1983) fixes the error rate spent up to each look. Simulated arms without an effect
supply the overlap with earlier looks, so that an arm already rejected spends nothing again. The p-value at a look is
exact by Student's t, whatever its degrees of freedom. Only the overlap is simulated, for paired t tests of the arm's
own differences. A prior variance adds degrees of freedom, which makes looks more alike, so that these levels are then a
little lower than they could be. Equivalence tests use the same levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

FIRST = 3  # seeds before the first look: two are too few to estimate a spread
_STUDIES = 400_000  # simulated arms


def _obrien_fleming(fraction: float, alpha: float) -> float:
    from scipy.special import ndtr, ndtri

    return float(4 * ndtr(ndtri(alpha / 4) / math.sqrt(fraction)))  # alpha / 2 on each side


def _pocock(fraction: float, alpha: float) -> float:
    return alpha * math.log1p((math.e - 1) * fraction)


def _linear(fraction: float, alpha: float) -> float:
    return alpha * fraction  # Kim & DeMets 1987, rho = 1


SPENDING: Mapping[str, Callable[[float, float], float]] = {
    "obrien_fleming": _obrien_fleming,
    "pocock": _pocock,
    "linear": _linear,
}


def look_times(planned: int) -> tuple[int, ...]:
    """Returns the looks, one after every seed from the third to the last planned one; none if fewer than three are
    planned."""
    return tuple(range(FIRST, planned + 1))


@lru_cache(maxsize=1024)
def levels(looks: tuple[int, ...], alpha: float, spending: str = "obrien_fleming") -> tuple[float, ...]:
    """Returns the level of an arm's two-sided test at each look.

    `looks` are numbers of seeds, the last one the planned number. With these levels an arm without an effect is called
    better or worse at any look with probability `alpha`. Raises ValueError for an unknown `spending`, and for looks
    that are empty, do not increase, or begin below two seeds.
    """
    if spending not in SPENDING:
        raise ValueError(f"spending is one of {', '.join(SPENDING)}, got {spending!r}")
    if not looks or looks[0] < 2 or any(b <= a for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks are growing numbers of seeds, two at least, got {looks}")
    if len(looks) == 1:
        return (alpha,)
    spent = [SPENDING[spending](seeds / looks[-1], alpha) for seeds in looks]
    p = _null_p(looks)
    rejected, found = np.zeros(p.shape[1], dtype=bool), []
    for look, new in enumerate(np.diff(spent, prepend=0.0).tolist()):
        earlier = np.sort(p[look][rejected])
        level = _with_overlap(new, earlier, p.shape[1])
        rejected |= p[look] <= level
        found.append(level)
    return tuple(found)


def _with_overlap(new: float, earlier: np.ndarray, studies: int) -> float:
    """Returns the level that newly rejects the fraction `new` of all arms; `earlier` are the p-values of arms rejected
    before."""
    level, last = new, -1.0
    while level > last:
        last, level = level, new + float(np.searchsorted(earlier, level, side="right")) / studies
    return level


@lru_cache(maxsize=16)
def _null_p(looks: tuple[int, ...]) -> np.ndarray:  # [L, M]
    """Returns the p-value of the paired t test at each look of M simulated arms without an effect, by rank."""
    rng, seeds = np.random.default_rng(0), looks[-1]
    studies = int(np.clip(8e6 / seeds, 20_000, _STUDIES))
    total, squares, found = np.zeros(studies), np.zeros(studies), []
    for seed in range(1, seeds + 1):
        block = rng.standard_normal(studies, dtype=np.float32)
        total += block
        squares += block**2
        if seed in looks:
            spread = squares / np.maximum(total**2, 1e-12)  # the smaller, the larger is t
            found.append((np.argsort(np.argsort(spread)) + 0.5) / studies)
    return np.stack(found)
