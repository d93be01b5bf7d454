"""Power of a study: the smallest effect that it detects with a given power, by number of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ratrain.statistics.interim_looks import levels, look_times
from ratrain.statistics.moderation import root
from ratrain.statistics.verdict import POWER

# degrees of freedom of the prior by the least number of arms: medians of studies of the calibration pool, three seeds
_PRIOR = {1: 0.0, 2: 2.0, 3: 3.0, 5: 4.0, 10: 6.0, 20: 7.0}


def expected_prior(arms: int) -> float:
    """Returns the prior degrees of freedom that studies of so many arms usually have."""
    return _PRIOR[max(least for least in _PRIOR if least <= max(1, arms))]


def power(
    effect: float, sd: float, *, arms: int, seeds: int, alpha: float = 0.05, spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None, evaluation: float = 0.0, prior: float | None = None,
) -> float:  # fmt: skip
    """Returns the chance that an arm with this effect is called better or worse at one of the looks.

    `sd` is the standard deviation of a paired difference. `evaluation` is the standard error from the finite number of
    documents, which more seeds do not reduce. `prior` is the prior's degrees of freedom, by default the expected ones.
    """
    times = look_times(seeds) if looks is None else tuple(looks)
    if not times:
        return 0.0
    known = expected_prior(arms) if prior is None else prior
    return _power(effect / sd, times, alpha / arms, spending, evaluation / sd, round(known))


def detectable(
    sd: float, *, arms: int, seeds: int, alpha: float = 0.05, power: float = POWER, spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None, evaluation: float = 0.0, prior: float | None = None,
) -> float:  # fmt: skip
    """Returns the smallest effect, in the unit of `sd`, that a study with `seeds` seeds finds with this power; infinite
    if no look is possible."""
    times = look_times(seeds) if looks is None else tuple(looks)
    if not times:
        return math.inf
    known = expected_prior(arms) if prior is None else prior
    documents = math.ceil(20 * evaluation / sd) / 20  # rounded up to 0.05, so that studies share cached simulations
    return sd * _in_deviations(times, alpha / arms, power, spending, documents, round(known))


def expected_seeds(
    effect: float, sd: float, *, arms: int, seeds: int, alpha: float = 0.05, spending: str = "linear",
    looks: Sequence[int] | None = None, prior: float | None = None,
) -> float:  # fmt: skip
    """Returns the mean number of seeds of an arm with this effect that stops at its verdict; arguments as in
    `power`."""
    times = look_times(seeds) if looks is None else tuple(looks)
    known = round(expected_prior(arms) if prior is None else prior)
    called = _called(effect / sd, times, alpha / arms, spending, 0.0, known)
    first = np.where(called.any(0), called.argmax(0), len(times) - 1)
    return float(np.array(times)[first].mean())


def more_seeds(
    sd: float, *, arms: int, counts: Sequence[int] = range(3, 11), alpha: float = 0.05, power: float = POWER,
    spending: str = "obrien_fleming", evaluation: float = 0.0, prior: float | None = None,
) -> dict[int, float]:  # fmt: skip
    """Returns the smallest detectable effect by the number of planned seeds."""
    return {
        seeds: detectable(
            sd, arms=arms, seeds=seeds, alpha=alpha, power=power, spending=spending, evaluation=evaluation, prior=prior
        )
        for seeds in counts
    }


@lru_cache(maxsize=1024)
def _in_deviations(
    times: tuple[int, ...], share: float, power: float, spending: str, evaluation: float, prior: int
) -> float:
    top = 1.0
    while _power(top, times, share, spending, evaluation, prior) < power:
        top *= 2
    return root(lambda d: _power(d, times, share, spending, evaluation, prior) - power, 0.0, top)


def _power(effect: float, times: tuple[int, ...], share: float, spending: str, evaluation: float, prior: int) -> float:
    """Returns the power at the arm's `share` of alpha; `effect` and `evaluation` are in standard deviations of a
    difference."""
    return float(np.mean(_called(effect, times, share, spending, evaluation, prior).any(0)))


def _called(
    effect: float, times: tuple[int, ...], share: float, spending: str, evaluation: float, prior: int
) -> np.ndarray:  # [L, M], bool
    """Returns the looks at which simulated arms are called better or worse."""
    from scipy.special import stdtrit

    found = []
    for seeds, level, noise, sd in zip(times, levels(times, share, spending), *_paths(times, prior), strict=True):
        critical = float(-stdtrit(seeds - 1 + prior, level / 2))
        found.append(np.abs(effect * math.sqrt(seeds) + noise) > critical * np.sqrt(sd**2 + evaluation**2 * seeds))
    return np.stack(found)


@lru_cache(maxsize=64)
def _paths(times: tuple[int, ...], prior: int) -> tuple[np.ndarray, np.ndarray]:  # [L, M] each
    """Simulates an arm's z and its moderated standard deviation over L looks in M studies."""
    rng, studies = np.random.default_rng(1), 20_000
    y = rng.standard_normal((times[-1], studies))
    at = np.array(times)[:, None]
    total, squares = np.cumsum(y, 0)[at[:, 0] - 1], np.cumsum(y**2, 0)[at[:, 0] - 1]
    own = squares - total**2 / at
    known = rng.chisquare(prior, studies) if prior else 0.0
    return total / np.sqrt(at), np.sqrt((own + known) / (at - 1 + prior))
