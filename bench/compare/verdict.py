"""Whether steps of a tree cost more than another's, from sets of fresh processes: two of the old tree, one of the new.

Within a set, rounds take every process in turn; a set yields one number for the new tree against the old, and one for
the old against itself. Processes differ among themselves (memory layout, hash seed), so the sample size is the number
of sets, not of rounds. The old tree against itself estimates the noise: its true difference is 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MATTERS = 0.02  # a smaller difference is not called one, however sure
LEVEL = 0.99  # of intervals
SETS, MOST = 5, 12  # sets of processes: at least, and at most while the band is wider than ENOUGH
ENOUGH = 0.02
ROUNDS = 21  # in a set; each takes every process twice
OLD, TWIN, NEW = "old", "twin", "new"
# variances of a set's numbers, in units of one process's variance: new less the mean of two, and one less the other
_OF_NEW, _OF_TWIN = 1.5, 2.0


@dataclass(frozen=True)
class Change:
    """The result of a set of processes: logarithms of ratios of a step's cost."""

    new: float  # the new tree to the old, the mean of its two
    twin: float  # the old tree to itself

    @classmethod
    def of(cls, seconds: Mapping[str, Sequence[float]]) -> Change:
        """Of seconds by process (OLD, TWIN, NEW) and round."""

        def over(one: str, other: str) -> float:
            return middle([math.log(a / b) for a, b in zip(seconds[one], seconds[other], strict=True)])

        # pair by pair: disturbances are one-sided, and against a mean of two the middle would not lie at 0
        return cls(new=(over(NEW, OLD) + over(NEW, TWIN)) / 2, twin=over(TWIN, OLD))


@dataclass(frozen=True)
class Verdict:
    """The cost of the new tree over the old one's, with its interval; `band` is the half-width due to noise."""

    ratio: float
    low: float
    high: float
    band: float
    sets: int

    @property
    def word(self) -> str:
        """slower, faster, same, or cannot tell."""
        if self.low > 1 and self.ratio >= 1 + MATTERS:
            return "slower"
        if self.high < 1 and self.ratio <= 1 / (1 + MATTERS):
            return "faster"
        return "same" if self.within <= 2 * MATTERS else "cannot tell"

    @property
    def within(self) -> float:
        """Largest distance of the ratio from 1 within the interval."""
        return max(self.high, 1 / self.low) - 1

    def __str__(self) -> str:
        return f"{self.word} within {100 * self.within:.1f} %" if self.word == "same" else self.word


def middle(values: Sequence[float]) -> float:
    """Returns the mean of the middle half: nearly as efficient as the mean, and robust to disturbed rounds."""
    ranked, cut = sorted(values), len(values) // 4
    return statistics.fmean(ranked[cut : len(ranked) - cut])


def judge(changes: Sequence[Change], first: int | None = None) -> Verdict:
    """Returns the verdict of these sets, with the noise estimated from the `first` of them (all if None); at least two.

    The variance of one process is pooled over both kinds of difference.
    """
    mean = statistics.fmean(change.new for change in changes)
    reach = _reach(changes[:first], len(changes))
    return Verdict(*(math.exp(mean + at * reach) for at in (0, -1, 1)), band=math.expm1(reach), sets=len(changes))


def decide(draw: Callable[[], Change], *, least: int = SETS, most: int = MOST) -> Verdict:
    """Returns the verdict of as many sets as a band of ENOUGH needs at the noise of the first `least`, at most `most`.

    The first `least` alone determine the number of sets and the width of the interval (Stein's two-stage procedure): an
    interval checked until it is narrow enough would miss the truth twice as often as its level states.
    """
    changes = [draw() for _ in range(least)]
    while _reach(changes[:least], len(changes)) > math.log1p(ENOUGH) and len(changes) < most:
        changes.append(draw())
    return judge(changes, least)


def _reach(changes: Sequence[Change], n: int) -> float:
    """Half-width of the interval, of logarithms, of n sets with the noise of these."""
    from scipy import stats

    mean = statistics.fmean(change.new for change in changes)
    squares = sum((change.new - mean) ** 2 / _OF_NEW + change.twin**2 / _OF_TWIN for change in changes)
    freedom = 2 * len(changes) - 1  # the twins' mean is known to be 0
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(_OF_NEW * squares / freedom / n)
