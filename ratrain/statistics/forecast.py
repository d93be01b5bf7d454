"""Forecasts for an arm without a verdict: the chance that more seeds give one, and the number of seeds that would."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MOST = 1000  # seeds; a forecast beyond them says no more than "many"


@dataclass(frozen=True)
class Standing:
    """What is known of an arm after `seeds` seeds, in nats: its effect, the standard deviation `sd` of a paired
    difference with `df` degrees of freedom, and the standard error from the finite number of documents. `barred` are
    verdicts that it cannot have: better, worse, equivalent."""

    effect: float
    sd: float
    df: float
    seeds: int
    evaluation: float = 0.0
    barred: tuple[str, ...] = ()

    def attainable(self, below: Callable[[float], float], seeds: int, level: float, delta: float | None) -> float:
        """Returns the chance of a verdict after so many seeds; `below` is the distribution of the mean then."""
        half = self.half_width(seeds, level)
        room = -1.0 if delta is None else delta - self.half_width(seeds, 2 * level)
        found = {
            "better": below(-half), "worse": 1 - below(half),
            "equivalent": below(room) - below(-room) if room > 0 else 0.0,
        }  # fmt: skip
        return min(1.0, sum(chance for word, chance in found.items() if word not in self.barred))

    def half_width(self, seeds: int, level: float) -> float:
        """Returns the half width of the two-sided interval at `level` after so many seeds."""
        from scipy.special import stdtrit

        spread = math.hypot(self.sd / math.sqrt(seeds), self.evaluation)
        return float(-stdtrit(self.df + seeds - self.seeds, level / 2)) * spread


def chance_of_verdict(arm: Standing, seeds: int, level: float, delta: float | None) -> float:
    """Returns the chance that the arm has a verdict after `seeds` seeds in all, given its losses so far.

    The mean after all seeds, given that after the first n, has the variance sd^2 (1/n - 1/seeds) if nothing else is
    known of the effect (predictive probability; Spiegelhalter, Freedman & Blackburn 1986). `level` is that of a test
    after all of them. Looks in between are left out.
    """
    from scipy.special import stdtr

    if seeds <= arm.seeds:
        return 0.0
    scale = arm.sd * math.sqrt(1 / arm.seeds - 1 / seeds)
    return arm.attainable(lambda mean: float(stdtr(arm.df, (mean - arm.effect) / scale)), seeds, level, delta)


def seeds_needed(arm: Standing, level: float, delta: float | None, power: float = 0.8) -> int | None:
    """Returns the number of seeds, in all, that give a verdict with this power if the effect is as large as it seems.

    None if more than 1000 seeds are needed, or no number is enough since other documents could turn the effect, or the
    verdict that it would have is barred.
    """
    from scipy.special import ndtr

    def enough(seeds: int) -> bool:
        error = arm.sd / math.sqrt(seeds)
        return arm.attainable(lambda mean: float(ndtr((mean - arm.effect) / error)), seeds, level, delta) > power

    if not enough(MOST):
        return None
    low, high = arm.seeds, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
