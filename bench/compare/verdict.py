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

import numpy as np
from scipy import stats

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
        old, twin, new = (np.log(seconds[name]) for name in (OLD, TWIN, NEW))
        # pair by pair: disturbances are one-sided, and against a mean of two the middle would not lie at 0
        return cls(new=(middle(new - old) + middle(new - twin)) / 2, twin=middle(twin - old))


def middle(values: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of the middle half: nearly as efficient as the mean, and robust to disturbed rounds."""
    return float(stats.trim_mean(values, 0.25))


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


def decide(draw: Callable[[], Change], *, least: int = SETS, most: int = MOST) -> Verdict:
    """Returns the verdict of as many sets as a band of ENOUGH needs at the noise of the first `least`, at most `most`.

    The first `least`, two or more, alone determine the number of sets and the width of the interval (Stein's two-stage
    procedure): an interval checked until it is narrow enough would miss the truth twice as often as its level states.
    The variance of one process is pooled over both kinds of difference.
    """
    changes = [draw() for _ in range(least)]
    mean = statistics.fmean(change.new for change in changes)
    squares = sum((change.new - mean) ** 2 / _OF_NEW + change.twin**2 / _OF_TWIN for change in changes)
    freedom = 2 * least - 1  # the twins' mean is known to be 0
    of_one = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(_OF_NEW * squares / freedom)
    while of_one / math.sqrt(len(changes)) > math.log1p(ENOUGH) and len(changes) < most:
        changes.append(draw())
    mean, reach = statistics.fmean(change.new for change in changes), of_one / math.sqrt(len(changes))
    return Verdict(*(math.exp(mean + at * reach) for at in (0, -1, 1)), band=math.expm1(reach), sets=len(changes))
