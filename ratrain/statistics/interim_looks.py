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
def levels(
    looks: tuple[int, ...], alpha: float, spending: str = "obrien_fleming", shares: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """Returns the level of an arm's two-sided test at each look.

    `looks` are numbers of seeds. `shares` are the shares of the planned information at the looks, by default those of
    the last look's seeds. They may be of time instead of seeds, as long as no loss decides them (Lan & DeMets,
    Statistics in Medicine 8, 1989). With these levels an arm without an effect is called better or worse at any look
    with probability `alpha` times the spent share. The level of a look depends on earlier looks alone.

    Raises ValueError for an unknown `spending`, for looks that are empty, do not increase, or begin below two seeds,
    and for shares that fall, leave (0, 1] or are not one per look.
    """
    if spending not in SPENDING:
        raise ValueError(f"spending is one of {', '.join(SPENDING)}, got {spending!r}")
    if not looks or looks[0] < 2 or any(b <= a for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks are growing numbers of seeds, two at least, got {looks}")
    known = tuple(seeds / looks[-1] for seeds in looks) if shares is None else shares
    if len(known) != len(looks) or any(b < a for a, b in itertools.pairwise((0.0, *known, 1.0))) or not known[0]:
        raise ValueError(f"shares grow within (0, 1], one per look, got {known} for {looks}")
    if known == (1.0,):
        return (alpha,)
    spent = [SPENDING[spending](share, alpha) for share in known]
    rejected, found = np.zeros(_STUDIES, dtype=bool), []
    for seeds, new in zip(looks, np.diff(spent, prepend=0.0).tolist(), strict=True):
        p = _null_p(seeds)
        level = _with_overlap(new, np.sort(p[rejected]), _STUDIES)
        rejected |= p <= level
        found.append(level)
    return tuple(found)


def _with_overlap(new: float, earlier: np.ndarray, studies: int) -> float:
    """Returns the level that newly rejects the fraction `new` of all arms; `earlier` are the p-values of arms rejected
    before."""
    level, last = new, -1.0
    while level > last:
        last, level = level, new + float(np.searchsorted(earlier, level, side="right")) / studies
    return level


@lru_cache(maxsize=128)
def _null_p(seeds: int) -> np.ndarray:  # [M]
    """Returns the p-value of the paired t test after so many seeds of M simulated arms without an effect, by rank.

    Arm m has the same first losses for every number of seeds.
    """
    total, squares = np.zeros(_STUDIES, np.float32), np.zeros(_STUDIES, np.float32)
    for seed in range(seeds):
        block = np.random.default_rng([0, seed]).standard_normal(_STUDIES, dtype=np.float32)
        total += block
        squares += block**2
    spread = squares / np.maximum(total**2, 1e-12)  # the smaller, the larger is t
    p = np.empty(_STUDIES, np.float32)
    p[np.argsort(spread)] = (np.arange(_STUDIES) + 0.5) / _STUDIES
    return p
