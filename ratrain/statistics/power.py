"""What a study can find: the effect that it claims with a given power, and what more seeds would buy."""

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
    """The chance that an arm with this effect is called better or worse at one of the looks; `sd` is the pooled one,
    `evaluation` the standard error for want of documents, which no seed averages away."""
    times = look_times(seeds) if looks is None else tuple(looks)
    return _power(effect / sd, arms, times, alpha, spending, evaluation / sd) if times else 0.0


def detectable(
    sd: float, *, arms: int, seeds: int, alpha: float = 0.05, power: float = POWER, spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None, evaluation: float = 0.0,
) -> float:  # fmt: skip
    """The smallest effect, in the unit of `sd`, that a study of so many seeds finds with this power; infinite where
    no verdict is possible."""
    times = look_times(seeds) if looks is None else tuple(looks)
    if not times:
        return math.inf
    documents = math.ceil(20 * evaluation / sd) / 20  # coarse, so that studies share what is simulated
    return sd * _in_deviations(arms, times, alpha, power, spending, documents)


def more_seeds(
    sd: float, *, arms: int, counts: Sequence[int] = range(3, 11), alpha: float = 0.05, power: float = POWER,
    spending: str = "obrien_fleming", evaluation: float = 0.0,
) -> dict[int, float]:  # fmt: skip
    """The smallest detectable effect by the number of seeds planned."""
    options = {"alpha": alpha, "power": power, "spending": spending, "evaluation": evaluation}
    return {seeds: detectable(sd, arms=arms, seeds=seeds, **options) for seeds in counts}


@lru_cache(maxsize=256)
def _in_deviations(
    arms: int, times: tuple[int, ...], alpha: float, power: float, spending: str, evaluation: float
) -> float:
    return root(lambda d: _power(d, arms, times, alpha, spending, evaluation) - power, 0.0, 200.0 * (1 + evaluation))


def _power(effect: float, arms: int, times: tuple[int, ...], alpha: float, spending: str, evaluation: float) -> float:
    """Effect and the evaluation's standard error in standard deviations of a run."""
    found = False
    for seeds, level, noise, sd in zip(times, levels(arms, times, alpha, spending), *_paths(arms, times), strict=True):
        critical = Family.full(arms, arms * (seeds - 1)).critical(level)
        error = np.sqrt(sd**2 + evaluation**2 * seeds / 2)
        found |= np.abs(effect * math.sqrt(seeds / 2) + noise) > critical * error
    return float(np.mean(found))


@lru_cache(maxsize=32)
def _paths(arms: int, times: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:  # [L, M] each
    """One arm's z and the pooled estimate of the standard deviation over the looks, in simulated studies.

    The estimate's growth is taken as independent of the arm's own path, which costs nothing that shows with two arms
    or more.
    """
    rng, studies = np.random.default_rng(1), 40_000
    steps = np.diff(times, prepend=0)[:, None]
    z = np.cumsum(np.sqrt(steps) * rng.standard_normal((len(times), studies)), 0) / np.sqrt(np.cumsum(steps, 0))
    df = arms * (np.array(times)[:, None] - 1)
    grown = rng.chisquare(np.diff(df, axis=0, prepend=0), (len(times), studies))
    return z, np.sqrt(np.cumsum(grown, 0) / df)
