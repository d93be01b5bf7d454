"""The baseline's loss against its tokens at one rung of a ladder, by which an arm's loss is read as tokens.

At a rung with D_0 tokens, the baseline is trained with a few other budgets D as well (the ruler). Near D_0 its loss is

    L(D) = floor + slope / bend * (D / D_0)^-bend,

the form of Hoffmann et al. (2022, arXiv:2203.15556, equation 10) at a fixed number of parameters: `slope` is the loss
that one unit of log tokens saves at D_0. Each rung has a `bend`, the exponent, of its own: early in training the loss
falls faster and faster over log tokens, and `bend` is negative. An effect e on the loss at D_0 is worth a log gain h of
tokens with L(D_0 exp(h)) = L(D_0) + e, so that

    h = -log(1 + bend * e / slope) / bend.

The ruler of a study (`token_ruler.py`) reads between its budgets alone, and takes no form for granted. A trend needs
gains a little beyond them too, and their derivatives.

Floor and slope are least-squares estimates; `bend` is integrated over a grid. A curve that fits worse than the seeds'
noise permits has its error widened by that (Birge 1932, Physical Review 40), and one whose noise few seeds show, to the
standard deviation of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ratrain.statistics.token_ruler import ALIKE

_BENDS = np.linspace(-2.5, 3.5, 61)
_USUAL, _SCATTER = 0.3, 1.0  # mean and standard deviation of bends beforehand: Hoffmann et al. find 0.28, late
_BEYOND = 0.05  # largest share of bends whose curves may not reach a loss
_UNKNOWN = 3.0  # variance of t over its scale for two degrees of freedom, which has none: that of three
_FARTHEST = 2.0  # log gains are read up to so many times the ruler's own reach


@dataclass(frozen=True)
class Gain:
    """An effect in log tokens: `value` in nats of log, so that exp(value) is the factor on the tokens.

    `per_nat` is its derivative by the effect, `curve_sd` the standard deviation that the curve's error causes.
    """

    value: float
    per_nat: float
    curve_sd: float


@dataclass(frozen=True)
class BudgetCurve:
    """The curve of a rung, for each exponent `bends` [B] with the weight `weights` [B]."""

    bends: np.ndarray  # [B]
    weights: np.ndarray  # [B]
    slopes: np.ndarray  # [B], in nats per unit of log tokens
    errors: np.ndarray  # [B], standard errors of log slopes
    reach: tuple[float, float]  # least and largest log budget over D_0

    @classmethod
    def of(cls, losses: Mapping[float, Mapping[int, float]]) -> BudgetCurve:
        """Fits the curve to the baseline's losses by the budget over D_0 and by seed.

        Raises ValueError for fewer than three budgets with two common seeds, and if the loss does not fall with the
        budget.
        """
        known = _Means.of(losses)
        slopes, errors, misfit = np.array([known.fit(float(bend)) for bend in _BENDS]).T
        usable = slopes > 0
        if not usable.any():
            raise ValueError("the baseline's loss does not fall with its tokens")
        free = len(known.values) - 3  # beside floor, slope and bend
        least = float(misfit[usable].min())
        excess = max(1.0, least / free) if free else 1.0
        log = -(misfit - least) / excess / 2 - ((_BENDS - _USUAL) / _SCATTER) ** 2 / 2
        weights = np.where(usable, np.exp(log - log[usable].max()), 0.0)
        kept = weights > 1e-6
        relative = math.sqrt(excess) * errors[kept] / slopes[kept]
        return cls(_BENDS[kept], weights[kept] / weights[kept].sum(), slopes[kept], relative, known.reach)

    def gain(self, effect: float) -> Gain | None:
        """Reads an effect in nats as tokens; less loss is more tokens.

        None if the loss lies beyond the curve's floor, or farther away than twice the ruler's reach.
        """
        inside = 1 + self.bends * effect / self.slopes
        of = inside > 0
        if float(self.weights[~of].sum()) > _BEYOND:
            return None
        weights, b, slope = self.weights[of] / self.weights[of].sum(), self.bends[of], self.slopes[of]
        curved = np.abs(b) > 1e-9
        values = np.where(curved, -np.log(inside[of]) / np.where(curved, b, 1.0), -effect / slope)
        value = float(weights @ values)
        low, high = (_FARTHEST * end for end in self.reach)
        if not low <= value <= high:
            return None
        by_slope = effect / (slope + b * effect)  # derivative by the logarithm of the slope
        per_nat = float(weights @ (-1 / (slope + b * effect)))
        variance = float(weights @ ((by_slope * self.errors[of]) ** 2 + (values - value) ** 2))
        return Gain(value, per_nat, math.sqrt(variance))

    def loss(self, log_tokens: np.ndarray) -> np.ndarray:
        """Returns the loss minus that at D_0, in nats, at D_0 exp(log_tokens), any shape, by the mean curve."""
        t = np.asarray(log_tokens, float)[..., None]
        return _shape(t, self.bends) @ (self.weights * self.slopes)


def _shape(t: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Returns the loss at log tokens t for a slope of one, minus that at 0."""
    curved = np.abs(bend) > 1e-9
    return np.where(curved, np.expm1(-bend * t) / np.where(curved, bend, 1.0), -t)


@dataclass(frozen=True)
class _Means:
    """The mean losses [J] at the budgets, with the covariance of their errors, and the factor that the variance of an
    estimate has since that covariance is itself one."""

    log_budgets: np.ndarray
    values: np.ndarray
    covariance: np.ndarray
    widened: float

    @property
    def reach(self) -> tuple[float, float]:
        return float(self.log_budgets.min()), float(self.log_budgets.max())

    @classmethod
    def of(cls, losses: Mapping[float, Mapping[int, float]]) -> _Means:
        """Averages over the seeds that all budgets have; the seed's common effect is no error of the curve's shape."""
        budgets = sorted(losses)
        common = sorted(set.intersection(*(set(losses[budget]) for budget in budgets))) if budgets else []
        if len(budgets) < 3 or len(common) < 2:
            known = f"{len(budgets)} budgets of the baseline, and {len(common)} seeds that all of them have"
            raise ValueError(f"{known}; expected three budgets or more, and two seeds")
        y = np.array([[losses[budget][seed] for seed in common] for budget in budgets])  # [J, S]
        rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        df = (len(budgets) - 1) * (len(common) - 1)
        apart = np.abs(np.subtract.outer(np.arange(len(budgets)), np.arange(len(budgets))))
        variance = max(float((rest**2).sum()) / df, 1e-12) / (1 - _mean_alike(apart))
        widened = df / (df - 2) if df > 2 else _UNKNOWN  # the variance of Student's t
        return cls(np.log(budgets), y.mean(1), variance * ALIKE**apart / len(common), widened)

    def fit(self, bend: float) -> tuple[float, float, float]:
        """Returns the slope at this exponent, its standard error, and the squared distance of the losses."""
        design = np.stack([np.ones_like(self.log_budgets), _shape(self.log_budgets, np.array(bend))], 1)
        inverse = np.linalg.inv(self.widened * self.covariance)
        information = design.T @ inverse @ design
        found = np.linalg.solve(information, design.T @ inverse @ self.values)
        rest = self.values - design @ found
        return float(found[1]), float(np.linalg.inv(information)[1, 1]) ** 0.5, float(rest @ inverse @ rest)


def _mean_alike(apart: np.ndarray) -> float:
    """The mean correlation of the errors of two budgets: without a seed's common effect they vary by one minus it."""
    return float((ALIKE**apart)[apart > 0].mean())
