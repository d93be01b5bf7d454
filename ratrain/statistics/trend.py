"""The trend of an arm's gain over the rungs of a ladder, and the interval for a rung that was not trained.

The measured log gain of an arm at rung k, with x_k decades of compute, is

    y_k = level + slope * x_k + misfit_k + error_k,

where `misfit_k`, of standard deviation tau, is the deviation of the rung from a straight line (a learning rate that
suits one rung better, a shape of the model), and `error_k` that of seeds, evaluation and the baseline's curve. Level
and slope have flat priors; the variances of the seeds' errors and tau are drawn at random from what is known of them
and weighted by the likelihood of the measured gains (Bayesian generalised least squares, importance sampling). Each
draw gives a normal distribution, and an interval is read off their mixture. So few rungs hardly show tau: its
distribution over the arms of the ladder is estimated from all of them, and each arm's own rungs then weigh in.

The interval for another rung is one for that rung's own gain: the errors of level and slope, and a misfit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ratrain.statistics.moderation import Spread, root

Interval = tuple[float, float]
_DRAWS = 1024
_TAUS = np.exp(np.linspace(math.log(0.0005), math.log(0.3), 24))  # in log tokens
_CENTRES = np.exp(np.linspace(math.log(0.001), math.log(0.1), 12))  # of tau over the arms
_WIDTHS = (0.4, 0.8, 1.6)  # standard deviations of log tau over the arms
_TINY = 1e-18
_EDGE = 1e-6  # of probabilities: draws of variances are not infinite


@dataclass(frozen=True)
class Measured:
    """An arm's log gains at rungs with `x` decades of compute, and their errors.

    `seeds` are the spreads of the seeds' errors, `shared` [K, K] the covariance of the errors of evaluation and curve.
    """

    x: np.ndarray  # [K]
    gains: np.ndarray  # [K]
    seeds: tuple[Spread, ...]
    shared: np.ndarray

    def at(self, rungs: Sequence[int]) -> Measured:
        """Returns the same at some of the rungs."""
        at = list(rungs)
        return Measured(self.x[at], self.gains[at], tuple(self.seeds[k] for k in at), self.shared[np.ix_(at, at)])


@dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions: weights, means and variances [M]."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means)

    @property
    def sd(self) -> float:
        return float(self.weights @ (self.variances + (self.means - self.mean) ** 2)) ** 0.5

    def below(self, value: float) -> float:
        """Returns the probability of values below this one."""
        from scipy.special import ndtr

        return float(self.weights @ ndtr((value - self.means) / np.sqrt(np.maximum(self.variances, _TINY))))

    def quantile(self, p: float) -> float:
        reach = 60 * self.sd + _TINY
        return root(lambda value: self.below(value) - p, self.mean - reach, self.mean + reach)

    def interval(self, level: float) -> Interval:
        """Returns the central interval that leaves out `level` in all."""
        return self.quantile(level / 2), self.quantile(1 - level / 2)


@dataclass(frozen=True)
class Trend:
    """The fitted trend of one arm: a draw m has a weight, a mean [2] and covariance [2, 2] of level and slope, a tau.

    The level is the gain at `origin` decades, the slope is per decade.
    """

    measured: Measured
    origin: float
    weights: np.ndarray  # [M]
    means: np.ndarray  # [M, 2]
    covariances: np.ndarray  # [M, 2, 2]
    taus: np.ndarray  # [M]
    precisions: np.ndarray  # [M, K, K], inverse covariances of the measured gains around the line

    def slope(self) -> Mixture:
        """The change of the log gain per decade of compute."""
        return Mixture(self.weights, self.means[:, 1], self.covariances[:, 1, 1])

    def line(self, x: float) -> Mixture:
        """The log gain that the trend has at x decades of compute."""
        at = np.array([1.0, x - self.origin])
        return Mixture(self.weights, self.means @ at, np.einsum("i,mij,j->m", at, self.covariances, at))

    def measured_rung(self, k: int) -> Mixture:
        """The log gain of rung k, counted from 0, with its own misfit: between the line and the measurement."""
        y = self.measured
        design, squares = _design(y.x, self.origin), self.taus**2
        pulled = squares[:, None] * self.precisions[:, k]  # [M, K], weights of the deviations from the line
        means = self.means @ design[k] + (pulled * (y.gains - self.means @ design.T)).sum(1)
        at = design[k] - pulled @ design
        own = squares - squares * pulled[:, k]
        return Mixture(self.weights, means, np.einsum("mi,mij,mj->m", at, self.covariances, at) + own)

    def rung(self, x: float) -> Mixture:
        """The log gain of a rung at x decades of compute, with its own misfit."""
        line = self.line(x)
        return Mixture(self.weights, line.means, line.variances + self.taus**2)

    def reading(self, x: float, seeds: Spread, variance: float, shared: np.ndarray) -> Mixture:
        """The log gain that a rung at x is measured to have, with an error of its seeds and one of `variance`.

        `shared` [K] is the covariance of the latter with the errors of the rungs that were measured.
        """
        y = self.measured
        design = _design(y.x, self.origin)
        pulled = np.einsum("k,mkl->ml", shared, self.precisions)  # [M, K]
        rest = y.gains - self.means @ design.T  # [M, K]
        at = np.array([1.0, x - self.origin]) - pulled @ design  # [M, 2]
        means = self.means @ np.array([1.0, x - self.origin]) + (pulled * rest).sum(1)
        own = variance - pulled @ shared + _variances([*y.seeds, seeds])[:, -1] + self.taus**2
        return Mixture(self.weights, means, np.einsum("mi,mij,mj->m", at, self.covariances, at) + own)

    def tau(self) -> float:
        """The geometric mean of the rungs' misfit, in log tokens."""
        return math.exp(float(self.weights @ np.log(self.taus)))


def trends(arms: Mapping[str, Measured]) -> dict[str, Trend]:
    """Fits the trend of every arm of a ladder; their misfits inform each other.

    Raises ValueError for an arm with fewer than three rungs: two leave nothing to judge a line by.
    """
    for name, of in arms.items():
        if len(of.x) < 3:
            raise ValueError(f"{name}: expected gains at three rungs or more, got {len(of.x)}")
    if not arms:
        return {}
    fits = {name: _fitted(of) for name, of in arms.items()}
    likelihoods = np.array([_by_tau(fit) for fit in fits.values()])  # [A, J]
    priors = _priors(likelihoods)
    found = {}
    for (name, (weights, trend, place)), prior in zip(fits.items(), priors, strict=True):
        w = weights * prior[place]
        found[name] = Trend(
            trend.measured, trend.origin, w / w.sum(), trend.means, trend.covariances, trend.taus, trend.precisions
        )
    return found


def _fitted(of: Measured) -> tuple[np.ndarray, Trend, np.ndarray]:
    """Returns the likelihood of each draw, scaled, the trend with equal weights, and the place of each tau."""
    k, m = len(of.x), _DRAWS
    place = np.minimum((_uniform(k + 1)[:, 0] * len(_TAUS)).astype(int), len(_TAUS) - 1)
    taus, origin = _TAUS[place], float(of.x.mean())
    variances = _variances(of.seeds)
    covariance = of.shared + np.eye(k) * (variances + taus[:, None] ** 2)[:, None, :]  # [M, K, K]
    precision = np.linalg.inv(covariance)
    design = _design(of.x, origin)
    information = np.einsum("ki,mkl,lj->mij", design, precision, design)
    inverse = np.linalg.inv(information)
    means = np.einsum("mij,kj,mkl,l->mi", inverse, design, precision, of.gains)
    rest = of.gains - means @ design.T
    distance = np.einsum("mk,mkl,ml->m", rest, precision, rest)
    log = -(distance + np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1]) / 2  # of the contrasts
    return np.exp(log - log.max()), Trend(of, origin, np.full(m, 1 / m), means, inverse, taus, precision), place


def _design(x: np.ndarray, origin: float) -> np.ndarray:
    return np.stack([np.ones_like(x), x - origin], 1)


def _by_tau(fit: tuple[np.ndarray, Trend, np.ndarray]) -> np.ndarray:  # [J]
    """Returns the likelihood of each value of tau, the seeds' variances averaged over."""
    weights, _, place = fit
    counts = np.bincount(place, minlength=len(_TAUS))
    return np.bincount(place, weights, len(_TAUS)) / counts


def _priors(likelihoods: np.ndarray) -> np.ndarray:  # [A, J]
    """Returns for every arm the prior of tau that the other arms leave: log-normal, its centre and width unknown."""
    log = np.log(_TAUS)
    shapes = np.exp(
        -(((log[None, None] - np.log(_CENTRES)[:, None, None]) / np.array(_WIDTHS)[None, :, None]) ** 2) / 2
    ).reshape(-1, len(log))  # [H, J]
    shapes /= shapes.sum(1, keepdims=True)
    each = np.log(np.maximum(likelihoods @ shapes.T, 1e-300))  # [A, H]
    others = each.sum(0, keepdims=True) - each
    weights = np.exp(others - others.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ shapes


@lru_cache(maxsize=16)
def _uniform(columns: int) -> np.ndarray:  # [M, columns]
    """Returns points in the unit cube, always the same, one in each of M equal intervals of every axis (McKay et al.
    1979, Technometrics 21)."""
    rng = np.random.default_rng(0)
    return np.stack([(rng.permutation(_DRAWS) + 0.5) / _DRAWS for _ in range(columns)], 1)


def _variances(spreads: Sequence[Spread]) -> np.ndarray:  # [M, K]
    """Draws variances from the spreads: df * variance / chi-square(df), of a component drawn by its weight."""
    from scipy.special import chdtri

    columns = []
    for at, spread in enumerate(spreads, start=1):  # the first column is that of tau
        u = _uniform(len(spreads) + 1)[:, at]
        edges = np.cumsum(spread.weights)
        component = np.minimum(np.searchsorted(edges, u, side="right"), len(edges) - 1)
        width = spread.weights[component]
        inside = np.clip((u - (edges[component] - width)) / width, _EDGE, 1 - _EDGE)  # uniform within its component
        df = spread.df[component]
        columns.append(df * spread.variances[component] / chdtri(df, inside) + spread.added)
    return np.stack(columns, 1)
