"""The ruler of a study converts effects to tokens, through the baseline's own losses at several budgets.

An arm is worth +4 % tokens if its loss at budget B equals the baseline's loss at 1.04 B. Between budgets the curve is a
monotone cubic (PCHIP) of loss over log tokens; it is undefined beyond them. Errors are approximate: the curve's errors
are linearised, and combined with the effect's errors as limits (MOVER; Zou & Donner 2008). The baseline's runs at B
enter both the effect and the curve, so their error cancels when an arm's loss is read. The interpolation error is not
included: budgets a factor of two apart, with B among them, keep it small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Limits = tuple[float, float]
ALIKE = 0.6  # correlation of the errors of neighbouring budgets, as measured on trained runs (docs/verdicts.md)


@dataclass(frozen=True)
class Reading:
    """A gain as a fraction, 0.04 for +4 %; None beyond the curve, and then `note` gives the reason."""

    gain: float | None
    interval: tuple[float | None, float | None]
    note: str

    def __str__(self) -> str:
        gain, low, high = ("?" if x is None else f"{round(x, 3) + 0.0:+.1%}" for x in (self.gain, *self.interval))
        return f"{gain} [{low}, {high}]" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Ruler:
    """The baseline's budget curve from the smallest budget to the largest, with the covariance of the losses'
    errors."""

    log_tokens: np.ndarray  # [K]
    losses: np.ndarray  # [K], strictly falling
    covariance: np.ndarray  # [K, K]
    df: float
    note: str

    @classmethod
    def of(cls, curve: Mapping[int, Mapping[int, float]]) -> Ruler:
        """Fits the ruler to the baseline's losses by budget and seed.

        If every budget has the same seeds, the seed's common effect on all of its losses is removed from the errors,
        since a reading compares points of one curve. Raises ValueError for fewer than two budgets, for a budget with
        fewer than two losses or a loss that is not finite, and if the loss does not fall with the budget.
        """
        budgets = sorted(curve)
        values = [np.array([curve[budget][seed] for seed in sorted(curve[budget])]) for budget in budgets]
        if len(budgets) < 2 or not all(len(v) >= 2 and np.isfinite(v).all() for v in values):
            raise ValueError("expected two budgets or more, each with two finite losses or more")
        counts = np.array([len(v) for v in values])
        means = np.array([v.mean() for v in values])
        rest, df = np.concatenate([v - v.mean() for v in values]), float(counts.sum() - len(counts))
        if len({tuple(sorted(runs)) for runs in curve.values()}) == 1:
            y = np.stack(values)
            rest, df = (y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()).ravel(), df - (counts[0] - 1)
        merge = _falling(means, counts)
        if len(merge) < 2:
            raise ValueError("the baseline's loss does not fall with its budget: there is nothing to read against")
        apart = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
        covariance = merge @ (rest @ rest / df * ALIKE**apart / np.sqrt(np.outer(counts, counts))) @ merge.T
        note = "more tokens did not always lower the baseline's loss: budgets merged" if len(merge) < len(means) else ""
        return cls(merge @ np.log(budgets), merge @ means, covariance, df, note)

    def tokens(self, effect: float, interval: Limits, *, budget: int, alpha: float = 0.05) -> Reading:
        """Converts an effect on the loss at `budget` tokens to tokens; less loss is more tokens.

        `interval` is the effect's at level `alpha`; the curve's own error is added to it. Raises ValueError if
        `interval` does not contain the effect, or if `budget` is not on the curve.
        """
        return self.seconds(effect, interval, budget=budget, cost=1.0, cost_interval=(1.0, 1.0), alpha=alpha)

    def seconds(
        self, effect: float, interval: Limits, *, budget: int, cost: float, cost_interval: Limits, alpha: float = 0.05
    ) -> Reading:
        """Converts an effect to a gain in time; `cost` is the measured ratio of the arm's step time to the
        baseline's. Raises ValueError as `tokens` does."""
        if not interval[0] <= effect <= interval[1]:
            raise ValueError(f"the effect {effect} is not within its interval {interval}")
        from scipy.special import stdtrit

        at, critical = self._place(budget), -float(stdtrit(self.df, alpha / 2))
        value = self._log_gain(effect, at)

        def limit(end: float, cost_end: float, side: int) -> float | None:
            """Returns the limit on one side, with the combined errors of effect, curve and cost."""
            reach = self._log_gain(end, at)
            if not math.isfinite(reach):
                return None
            centre, moved = (value, reach - value) if math.isfinite(value) else (reach, 0.0)
            # the baseline's runs enter both effect and curve: their error cancels, the curve's at the reading is added
            read = max(moved**2 + critical**2 * self._traded(reach, at), moved**2 / 2)  # at least the arm's own error
            half = math.hypot(math.sqrt(read), math.log(cost_end / cost))
            return math.expm1(centre - math.log(cost) + side * half)

        limits = limit(interval[1], cost_interval[1], -1), limit(interval[0], cost_interval[0], 1)
        gain = math.expm1(value - math.log(cost)) if math.isfinite(value) else None
        return Reading(gain, limits, "; ".join(filter(None, (self.note, self._beyond(effect, interval, at)))))

    def _place(self, budget: int) -> float:
        first, last = self.log_tokens[[0, -1]].tolist()
        if not first - 1e-9 <= math.log(budget) <= last + 1e-9:
            raise ValueError(
                f"{budget} tokens are not on the baseline's curve, from {math.exp(first):.0f} to {math.exp(last):.0f}"
            )
        return min(max(math.log(budget), first), last)

    def _beyond(self, effect: float, interval: Limits, at: float) -> str:
        """Describes the part of effect and interval beyond the curve; empty if the curve covers both."""
        reach = [self._log_gain(end, at) for end in (effect, *interval)]
        if all(map(math.isfinite, reach)):
            return ""
        first, last = np.expm1(self.log_tokens[[0, -1]] - at).tolist()
        what = "the interval" if math.isfinite(reach[0]) else "the effect"
        ways = {math.inf: f"above {last:+.0%}", -math.inf: f"below {first:+.0%}"}
        if not math.isfinite(reach[0]):
            return f"{what} is beyond the curve, {ways[reach[0]]} tokens"
        return f"{what} goes beyond the curve, {' and '.join(ways[x] for x in reach[1:] if x in ways)} tokens"

    def _log_gain(self, effect: float, at: float) -> float:
        """Returns log(T / budget); at T tokens the curve's loss differs by `effect` from its loss at the budget.
        Infinite beyond the curve."""
        from scipy.interpolate import PchipInterpolator

        curve = PchipInterpolator(self.log_tokens, self.losses)
        wanted = float(curve(at)) + effect
        if not self.losses[-1] <= wanted <= self.losses[0]:
            return math.inf if wanted < self.losses[-1] else -math.inf
        return float(curve.solve(wanted, extrapolate=False)[0]) - at

    def _traded(self, reach: float, at: float) -> float:
        """Returns the variance of the curve at the reading minus that at the budget, in units of squared log gain."""
        from scipy.interpolate import PchipInterpolator

        step = 1e-4 * float(-np.diff(self.losses).max())
        nudged = self.losses[:, None, None] + step * np.eye(len(self.losses))[:, :, None] * np.array([1, -1])
        curves = PchipInterpolator(self.log_tokens, nudged)  # [K] -> [K, 2]
        here, there = ((x[:, 0] - x[:, 1]) / (2 * step) for x in (curves(at), curves(at + reach)))
        slope = float(PchipInterpolator(self.log_tokens, self.losses)(at + reach, 1))
        traded = float(there @ self.covariance @ there - here @ self.covariance @ here)
        return traded / slope**2 if slope else math.inf


def _falling(means: np.ndarray, counts: np.ndarray) -> np.ndarray:  # [K', K]
    """Returns weights that merge neighbours until every mean is below the previous one (pool adjacent violators)."""
    groups: list[list[int]] = []
    for at in range(len(means)):
        groups.append([at])
        while len(groups) > 1 and _mean_of(means, counts, groups[-1]) >= _mean_of(means, counts, groups[-2]):
            last = groups.pop()
            groups[-1] += last
    weights = np.zeros((len(groups), len(means)))
    for row, group in enumerate(groups):
        weights[row, group] = counts[group] / counts[group].sum()
    return weights


def _mean_of(means: np.ndarray, counts: np.ndarray, group: list[int]) -> float:
    return float(means[group] @ counts[group] / counts[group].sum())
