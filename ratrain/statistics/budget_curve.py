"""The baseline's loss against its tokens at every rung of a ladder, by which an arm's loss is read as tokens.

At rung k, with D_k tokens, the baseline is trained with a few other budgets D as well (the ruler). Near D_k its loss is

    L_k(D) = floor_k + slope_k / bend * (D / D_k)^-bend,

the form of Hoffmann et al. (2022, arXiv:2203.15556, equation 10) at a fixed number of parameters: `slope_k` is the loss
that one unit of log tokens saves at D_k, and `bend`, the exponent, is common to all rungs. An effect e on the loss at
D_k is worth a log gain h of tokens with L_k(D_k exp(h)) = L_k(D_k) + e, so that

    h = -log(1 + bend * e / slope_k) / bend.

Floors and slopes are least-squares estimates; `bend` is integrated over a grid, and its error is one that all rungs
share. Curves that fit worse than the seeds' noise permits have their errors widened by that (Birge 1932, Physical
Review 40), and so do those whose noise few seeds show, to the standard deviation of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_BENDS = np.linspace(0.0, 2.0, 41)
_ALIKE = 0.6  # correlation of the errors of neighbouring budgets, as measured on trained runs (docs/verdicts.md)
_BEYOND = 0.05  # largest share of bends at which a loss may lie below the curve's floor
_UNKNOWN = 3.0  # variance of t over its scale for two degrees of freedom, which has none: that of three
_FARTHEST = 2.0  # log gains are read up to so many times the ruler's own reach


@dataclass(frozen=True)
class Gain:
    """An effect in log tokens: `value` in nats of log, so that exp(value) is the factor on the tokens.

    `per_nat` is its derivative by the effect. `slope_sd` is the standard deviation that the error of the rung's slope
    causes, `by_bend` [B] the value at each exponent.
    """

    value: float
    per_nat: float
    slope_sd: float
    by_bend: np.ndarray


@dataclass(frozen=True)
class BudgetCurve:
    """The curves of all rungs, from the smallest on, for each exponent `bends` [B] with the weight `weights` [B]."""

    bends: np.ndarray  # [B]
    weights: np.ndarray  # [B]
    slopes: np.ndarray  # [B, K], in nats per unit of log tokens
    errors: np.ndarray  # [B, K], standard errors of log slopes
    reach: np.ndarray  # [K, 2], least and largest log budget over D_k

    @classmethod
    def of(cls, rungs: Sequence[Mapping[float, Mapping[int, float]]]) -> BudgetCurve:
        """Fits the curves to the baseline's losses of each rung, by the budget over D_k and by seed.

        Raises ValueError, with the number of the rung, for fewer than three budgets with two common seeds, and if the
        loss does not fall with the budget.
        """
        known = [_Rung.of(number, losses) for number, losses in enumerate(rungs, start=1)]
        fits = [[rung.fit(bend) for bend in _BENDS] for rung in known]  # [K][B]
        slopes, errors, misfit = (np.array([[fit[i] for fit in of] for of in fits]).T for i in range(3))
        if (flat := np.flatnonzero(slopes.max(0) <= 0)).size:
            raise ValueError(f"rung {flat[0] + 1}: the baseline's loss does not fall with its tokens")
        usable = (slopes > 0).all(1)
        total, df = misfit.sum(1), sum(rung.budgets - 2 for rung in known) - 1
        least = float(total[usable].min())
        excess = max(1.0, least / max(1, df))
        weights = np.where(usable, np.exp(-(total - least) / 2 / excess), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = math.sqrt(excess) * errors / slopes
        kept = weights > 1e-6
        reach = np.array([rung.reach for rung in known])
        return cls(_BENDS[kept], weights[kept] / weights[kept].sum(), slopes[kept], relative[kept], reach)

    def gain(self, rung: int, effect: float) -> Gain | None:
        """Reads an effect in nats at a rung, counted from 0, as tokens; less loss is more tokens.

        None if the loss lies below the curve's floor, or farther away than twice the ruler's reach.
        """
        slope, bend = self.slopes[:, rung], self.bends
        inside = 1 + bend * effect / slope
        if float(self.weights[inside <= 0].sum()) > _BEYOND:
            return None
        of, weights = inside > 0, self.weights / self.weights[inside > 0].sum()
        x, b, g = effect, bend[of], slope[of]
        log = np.log(inside[of])
        values = np.where(b > 0, -log / np.where(b > 0, b, 1.0), -x / g)
        value = float(weights[of] @ values)
        low, high = _FARTHEST * self.reach[rung]
        if not low <= value <= high:
            return None
        by_slope = x / (g + b * x)  # derivative by the logarithm of the slope
        per_nat = float(weights[of] @ (-1 / (g + b * x)))
        slope_sd = float(weights[of] @ (by_slope * self.errors[of, rung]) ** 2) ** 0.5
        by_bend = np.full(len(bend), value)
        by_bend[of] = values
        return Gain(value, per_nat, slope_sd, by_bend)

    def covariance(self, gains: Sequence[Gain]) -> np.ndarray:  # [K, K]
        """Returns the covariance of gains at different rungs that the errors of the curves cause."""
        away = np.array([gain.by_bend - gain.value for gain in gains])
        return (away * self.weights) @ away.T + np.diag([gain.slope_sd**2 for gain in gains])

    def loss(self, rung: int, log_tokens: np.ndarray) -> np.ndarray:
        """Returns the loss minus that at D_k, in nats, at D_k exp(log_tokens), any shape, by the mean curve."""
        t = np.asarray(log_tokens, float)[..., None]
        b = np.where(self.bends > 0, self.bends, 1.0)
        shapes = np.where(self.bends > 0, np.expm1(-b * t) / b, -t)
        return shapes @ (self.weights * self.slopes[:, rung])


@dataclass(frozen=True)
class _Rung:
    """The mean losses [J] of a rung at its budgets, with the covariance of their errors, and the factor that the
    variance of an estimate has since that covariance is itself one."""

    log_budgets: np.ndarray
    means: np.ndarray
    covariance: np.ndarray
    widened: float

    @property
    def budgets(self) -> int:
        return len(self.means)

    @property
    def reach(self) -> tuple[float, float]:
        return float(self.log_budgets.min()), float(self.log_budgets.max())

    @classmethod
    def of(cls, number: int, losses: Mapping[float, Mapping[int, float]]) -> _Rung:
        """Averages over the seeds that all budgets have; the seed's common effect is no error of the curve's shape."""
        budgets = sorted(losses)
        common = sorted(set.intersection(*(set(losses[budget]) for budget in budgets))) if budgets else []
        if len(budgets) < 3 or len(common) < 2:
            known = f"{len(budgets)} budgets of the baseline, and {len(common)} seeds that all of them have"
            raise ValueError(f"rung {number}: {known}; expected three budgets or more, and two seeds")
        y = np.array([[losses[budget][seed] for seed in common] for budget in budgets])  # [J, S]
        rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        df = (len(budgets) - 1) * (len(common) - 1)
        apart = np.abs(np.subtract.outer(np.arange(len(budgets)), np.arange(len(budgets))))
        variance = max(float((rest**2).sum()) / df, 1e-12) / (1 - _mean_alike(apart))
        widened = df / (df - 2) if df > 2 else _UNKNOWN  # the variance of Student's t
        return cls(np.log(budgets), y.mean(1), variance * _ALIKE**apart / len(common), widened)

    def fit(self, bend: float) -> tuple[float, float, float]:
        """Returns the slope at this exponent, its standard error, and the squared distance of the losses."""
        t = self.log_budgets
        shape = -t if bend == 0 else np.expm1(-bend * t) / bend
        design = np.stack([np.ones_like(t), shape], 1)
        inverse = np.linalg.inv(self.covariance)
        information = design.T @ inverse @ design
        found = np.linalg.solve(information, design.T @ inverse @ self.means)
        rest = self.means - design @ found
        error = math.sqrt(self.widened * float(np.linalg.inv(information)[1, 1]))
        return float(found[1]), error, float(rest @ inverse @ rest)


def _mean_alike(apart: np.ndarray) -> float:
    """The mean correlation of the errors of two budgets: without a seed's common effect they vary by one minus it."""
    return float((_ALIKE**apart)[apart > 0].mean())
