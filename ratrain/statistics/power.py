"""Power of a study: the smallest effect that it detects with a given power, by number of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ratrain.statistics.dunnett import Family, root
from ratrain.statistics.interim_looks import levels, look_times

POWER = 0.8


def power(
    effect: float, sd: float, *, arms: int, seeds: int, alpha: float = 0.05, spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None, evaluation: float = 0.0,
) -> float:  # fmt: skip
    """Returns the chance that an arm with this effect is called better or worse at one of the looks.

    `sd` is the pooled standard deviation. `evaluation` is the standard error from the finite number of documents, which
    more seeds do not reduce.
    """
    times = look_times(seeds) if looks is None else tuple(looks)
    return _power(effect / sd, arms, times, alpha, spending, evaluation / sd) if times else 0.0


def detectable(
    sd: float, *, arms: int, seeds: int, alpha: float = 0.05, power: float = POWER, spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None, evaluation: float = 0.0,
) -> float:  # fmt: skip
    """Returns the smallest effect, in the unit of `sd`, that a study with `seeds` seeds finds with this power; infinite
    if no look is possible."""
    times = look_times(seeds) if looks is None else tuple(looks)
    if not times:
        return math.inf
    documents = math.ceil(20 * evaluation / sd) / 20  # rounded up to 0.05, so that studies share cached simulations
    return sd * _in_deviations(arms, times, alpha, power, spending, documents)


def more_seeds(
    sd: float, *, arms: int, counts: Sequence[int] = range(3, 11), alpha: float = 0.05, power: float = POWER,
    spending: str = "obrien_fleming", evaluation: float = 0.0,
) -> dict[int, float]:  # fmt: skip
    """Returns the smallest detectable effect by the number of planned seeds."""
    options = {"alpha": alpha, "power": power, "spending": spending, "evaluation": evaluation}
    return {seeds: detectable(sd, arms=arms, seeds=seeds, **options) for seeds in counts}


@lru_cache(maxsize=256)
def _in_deviations(
    arms: int, times: tuple[int, ...], alpha: float, power: float, spending: str, evaluation: float
) -> float:
    return root(lambda d: _power(d, arms, times, alpha, spending, evaluation) - power, 0.0, 200.0 * (1 + evaluation))


def _power(effect: float, arms: int, times: tuple[int, ...], alpha: float, spending: str, evaluation: float) -> float:
    """Returns the power; `effect` and `evaluation` are in standard deviations of a run."""
    found = False
    for seeds, level, noise, sd in zip(times, levels(arms, times, alpha, spending), *_paths(arms, times), strict=True):
        critical = Family.full(arms, arms * (seeds - 1)).critical(level)
        error = np.sqrt(sd**2 + evaluation**2 * seeds / 2)
        found |= np.abs(effect * math.sqrt(seeds / 2) + noise) > critical * error
    return float(np.mean(found))


@lru_cache(maxsize=32)
def _paths(arms: int, times: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:  # [L, M] each
    """Simulates one arm's z and the pooled standard deviation estimate over L looks in M studies.

    The growth of the estimate is taken as independent of the arm's own path; with two arms or more the error is
    invisible.
    """
    rng, studies = np.random.default_rng(1), 40_000
    steps = np.diff(times, prepend=0)[:, None]
    z = np.cumsum(np.sqrt(steps) * rng.standard_normal((len(times), studies)), 0) / np.sqrt(np.cumsum(steps, 0))
    df = arms * (np.array(times)[:, None] - 1)
    grown = rng.chisquare(np.diff(df, axis=0, prepend=0), (len(times), studies))
    return z, np.sqrt(np.cumsum(grown, 0) / df)
