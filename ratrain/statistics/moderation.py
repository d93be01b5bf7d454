"""Moderated variances: each arm's own variance of paired differences, shrunk towards a prior fitted over the arms.

Three seeds give an arm two degrees of freedom. One pooled variance for all arms would be better known, but arms differ
up to fifty-fold in it, so that close arms would drown in the noise of others and noisy arms would make false claims. In
between lies the hierarchical model of Smyth (2004, Statistical Applications in Genetics and Molecular Biology 3(1)),
known from limma: the variance of arm a is drawn from a scaled inverse chi-square distribution with `df` degrees of
freedom around a prior variance, so that

    variance(a) / prior(a) ~ F(own degrees of freedom, df),

and the effect over its moderated error is Student's t with the degrees of freedom of both. The prior may have a trend,
log prior(a) = level + slope * log x(a), on a covariate x that is measured within the runs (limma-trend; Law et al.
2014, Genome Biology 15:R29). A share of the arms follows no prior: their variance is their own (compare the robust
prior of Phipson et al. 2016, Annals of Applied Statistics 10(2)).

limma plugs in point estimates of the prior, from thousands of genes. A study has twenty arms or one, and an estimate of
`df` from twenty variances is often infinite by chance. So level, slope, df and share are integrated out over a grid
instead. One arm alone then gets the ordinary t test, and many arms of equal spread nearly that of a pooled variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

_DF = np.array([1.0, 2, 4, 8, 16, 32, 100, 1000])  # grid of the prior's degrees of freedom
_SLOPES = np.linspace(-0.75, 0.75, 6)  # of the trend
_OUTSIDE = np.array([0.005, 0.05])  # share of arms that follow no prior
_LEAST = 1e-6  # of the median variance: below it, equal losses would be taken for certainty
_STEP, _JOINED = 0.3, 0.1  # steps of log variances: of the grid, and within a component
_MARGIN = 3.0  # of the prior's level, beyond half the range of the observed log variances around their mean
_COARSE = 0.3  # step of log variances beside an added one, which makes a tail cost more
_PRECISE = 1e-7  # of a half width
_NODES, _FEW = 45, 21  # of the integral over an added variance's t; few beside a component that is wider than it
_BEYOND, _MIDDLE = 1e-8, 2.0  # its mass beyond the nodes; where they begin to be further apart, in its scale
_NARROW = 0.35  # least scale of a component, in distances of two nodes
_TINY = 1e-30  # variance of losses that are all the same
_KEPT = 1e-5  # components of less weight, relative to the largest, are left out


@dataclass(frozen=True, eq=False)
class Spread:
    """The posterior of one arm's variance: a mixture of scaled inverse chi-squares, and an added variance beside it.

    Component c has the weight `weights[c]`, the variance estimate `variances[c]` and `df[c]` degrees of freedom. A
    difference with this variance, over the standard deviation, follows the same mixture of Student's t. `added` is the
    estimate of an independent second variance with `added_df` degrees of freedom.
    """

    weights: np.ndarray  # [C]
    variances: np.ndarray  # [C]
    df: np.ndarray  # [C]
    added: float = 0.0
    added_df: float = np.inf
    _halves: dict[float, float] = field(default_factory=dict)  # half widths by level

    @property
    def sd(self) -> float:
        """The median-like standard deviation: the geometric mean over the mixture."""
        return float(np.exp(self.weights @ np.log(self.variances + self.added) / 2))

    def scaled(self, factor: float) -> Spread:
        """Returns the spread of a quantity with `factor` times the variance."""
        return Spread(self.weights, self.variances * factor, self.df, self.added * factor, self.added_df)

    def plus(self, variance: float, df: float) -> Spread:
        """Adds an independent variance that is known with `df` degrees of freedom, to a spread without one."""
        if not variance:
            return self
        return Spread(*_coarser(self.weights, self.variances, self.df), variance, df)

    def tail(self, value: float) -> float:
        """Returns the chance that a difference of mean zero with this variance exceeds |value|: a two-sided p-value.

        With an added variance it is that of a sum of two scaled t, given both estimates (Behrens and Fisher). A single
        t with Satterthwaite's degrees of freedom exceeds its level with few seeds: 7 % at 5 %, 3 % at 0.8 % at worst.
        """
        from scipy.special import stdtr

        if not self.added:
            return float(np.clip(2 * self.weights @ stdtr(self.df, -abs(value) / np.sqrt(self.variances)), 0.0, 1.0))
        beside, sds, far = np.sqrt(self.added), np.sqrt(self.variances), np.empty(len(self.df))
        wide = sds > beside
        for some, count in ((wide, _FEW), (~wide, _NODES)):
            nodes, weights, gaps = _nodes(self.added_df, count)
            scale = np.maximum(sds[some, None] / beside, _NARROW * gaps)  # wider than the nodes are apart
            far[some] = stdtr(self.df[some, None], (nodes - abs(value) / beside) / scale) @ weights
        return float(np.clip(2 * self.weights @ far, 0.0, 1.0))

    def half_width(self, level: float) -> float:
        """Returns the value whose `tail` is `level`, for 0 < level < 1."""
        from scipy.optimize import root_scalar
        from scipy.special import stdtrit

        if level <= 0:
            return float(np.inf)
        if level not in self._halves:
            # the logarithm of the tail is nearly straight over that of the value, so that few tails are computed
            start = math.log(self.sd * -stdtrit(float(self.weights @ self.df), level / 2))
            goal, ends = math.log(level), (start, start + 0.1)
            found = root_scalar(
                lambda at: math.log(self.tail(math.exp(at))) - goal, x0=ends[0], x1=ends[1], xtol=_PRECISE
            )
            self._halves[level] = math.exp(found.root)
        return self._halves[level]

    def freedom(self, level: float = 0.05) -> float:
        """Returns the degrees of freedom of the single t with this half-width at `level`, in units of `sd`."""
        from scipy.special import stdtrit

        level = level or 0.05
        wide = self.half_width(level) / self.sd
        return root(lambda df: float(-stdtrit(df, level / 2)) - wide, 0.3, 1e4)


@lru_cache(maxsize=64)
def _nodes(df: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `count` nodes, close in the middle and far apart in the tails, and weights of the trapezoidal rule for
    Student's t with `df` degrees of freedom; and the distances between nodes."""
    from scipy.special import stdtrit
    from scipy.stats import t

    places = np.linspace(-1, 1, count) * math.asinh(-stdtrit(min(df, 1e9), _BEYOND) / _MIDDLE)
    nodes, stretch = _MIDDLE * np.sinh(places), np.cosh(places)
    density = t.pdf(nodes, df) * stretch
    return nodes, density / density.sum(), _MIDDLE * stretch * (places[1] - places[0])


def _coarser(weights: np.ndarray, variances: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins components of equal degrees of freedom and similar variance, to their geometric mean."""
    if len(weights) == 1:
        return weights, variances, df
    place = np.floor(np.log(variances) / _COARSE)
    _, at = np.unique(1e6 * np.searchsorted(np.unique(df), df) + place, return_inverse=True)
    total = np.bincount(at, weights)
    logs = np.bincount(at, weights * np.log(variances)) / total
    return total, np.exp(logs), np.bincount(at, weights * df) / total


def root(function: Callable[[float], float], low: float, high: float, *, rtol: float = 1e-9) -> float:
    """Returns the zero of a monotone function between `low` and `high`; the end without a change of sign if the zero
    lies beyond it."""
    from scipy.optimize import root_scalar

    first, last = function(low), function(high)
    if first == 0 or (abs(first) < abs(last) and first * last > 0):
        return low
    return high if first * last >= 0 else float(root_scalar(function, bracket=(low, high), rtol=rtol).root)


def moderated(
    variances: ArrayLike,
    df: ArrayLike,
    covariate: ArrayLike | None = None,
    *,
    evidence: ArrayLike | None = None,
    independent: float | None = None,
    scatter: float = np.inf,
) -> list[Spread | None]:
    """Returns the posterior spread of each arm from its sample variance and its degrees of freedom.

    `covariate` is a positive number per arm, on which the prior has a trend; NaN for an arm without one takes the mean
    trend. An arm without degrees of freedom gets None, as it says nothing about its variance. `scatter` is the expected
    standard deviation of log variances around the prior; by default any is as likely.

    The variances of differences to one baseline share its noise and are correlated. `evidence` are independent sample
    variances to fit the prior to instead, with the arms' degrees of freedom. Otherwise `independent` is the number of
    independent variances that those of the arms are worth, by default all, and the likelihood is tempered accordingly.
    """
    v, f = np.asarray(variances, float), np.asarray(df, float)
    known = np.isfinite(v) & (f > 0)
    found: list[Spread | None] = [None] * len(v)
    if not known.any():
        return found
    seen = v if evidence is None else np.asarray(evidence, float)
    x = np.ones(len(v)) if covariate is None else np.asarray(covariate, float)
    share = 1.0 if independent is None else min(1.0, independent / known.sum())
    spreads = _posterior(_positive(v[known]), f[known], x[known], _positive(seen[known]), share, scatter)
    for at, spread in zip(np.flatnonzero(known), spreads, strict=True):
        found[at] = spread
    return found


def _positive(v: np.ndarray) -> np.ndarray:
    least = _LEAST * np.median(v[v > 0]) if len(v) > 1 and (v > 0).any() else _TINY
    return np.maximum(v, least)


def _posterior(
    v: np.ndarray, f: np.ndarray, x: np.ndarray, evidence: np.ndarray, share: float, scatter: float
) -> list[Spread]:
    if len(v) == 1:
        return [Spread(np.ones(1), v, f)]
    prior, d, outside, log_weight = _grid(np.log(evidence), _trend(x), scatter)
    width = np.ptp(np.log(evidence)) + 2 * _MARGIN
    weight = log_weight + share * np.logaddexp(*_log_densities(evidence, prior, f, d, outside, width)).sum(1)
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    inside, flat = _log_densities(v, prior, f, d, outside, width)
    alone = np.exp(flat - np.logaddexp(inside, flat))  # [G, A], the chance that the arm follows no prior
    return [
        _mixture(weight * (1 - alone[:, a]), (weight * alone[:, a]).sum(), np.exp(prior[:, a]), d[:, 0], v[a], f[a])
        for a in range(len(v))
    ]


def _log_densities(
    v: np.ndarray, prior: np.ndarray, f: np.ndarray, d: np.ndarray, outside: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log densities of the log variances v [A] at every grid point [G, A], for arms that follow the prior
    and for those that follow none, whose log variances are alike likely over `width`."""
    inside = np.log1p(-outside) + _log_density(np.log(v) - prior, f, d)
    return inside, np.broadcast_to(np.log(outside) - np.log(width), inside.shape)


def _trend(x: np.ndarray) -> np.ndarray:
    """Returns the centred logarithm of the covariate, 0 where it is unknown."""
    known = np.isfinite(x) & (x > 0)
    log_x = np.log(np.where(known, x, 1.0))
    return np.where(known, log_x - log_x[known].mean(), 0.0) if known.any() else np.zeros(len(x))


def _grid(
    log_v: np.ndarray, trend: np.ndarray, scatter: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the grid of hyperparameters: log prior variances [G, A], degrees of freedom and share of outsiders
    [G, 1] each, and log weights of the hyperprior [G]."""
    from scipy.special import polygamma

    spread = np.sqrt(polygamma(1, _DF / 2))  # of log variances around the prior
    hyperprior = -np.gradient(spread) * np.exp(-((spread / scatter) ** 2) / 2)
    slopes = _SLOPES if np.ptp(trend) > 1e-9 else np.zeros(1)
    reach = np.ptp(log_v) / 2 + _MARGIN
    levels = np.arange(log_v.mean() - reach, log_v.mean() + reach + _STEP, _STEP)
    level, slope, d, outside = (
        part.reshape(-1, 1) for part in np.meshgrid(levels, slopes, _DF, _OUTSIDE, indexing="ij")
    )
    log_weight = np.log(hyperprior)[np.searchsorted(_DF, d[:, 0])]
    return level + slope * trend, d, outside, log_weight


def _log_density(log_ratio: np.ndarray, f: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Returns the log density of the logarithm of an F variate with f and d degrees of freedom."""
    from scipy.special import betaln

    y = log_ratio + np.log(f) - np.log(d)
    return f / 2 * y - (f + d) / 2 * np.logaddexp(0.0, y) - betaln(f / 2, d / 2)


def _mixture(weight: np.ndarray, alone: float, prior: np.ndarray, d: np.ndarray, v: float, f: float) -> Spread:
    """Joins grid points of equal degrees of freedom and nearly equal variance."""
    place = np.round(np.log((d * prior + f * v) / (d + f)) / _JOINED).astype(int)
    first, width = place.min(), np.ptp(place) + 1
    joined = np.bincount(np.searchsorted(_DF, d) * width + place - first, weight, len(_DF) * width)
    used = np.flatnonzero(joined)
    weights, keys = joined[used], np.stack([used // width, used % width + first])
    kept = weights > _KEPT * weights.max()
    weights = np.append(weights[kept], alone)
    variances = np.append(np.exp(keys[1, kept] * _JOINED), v)
    return Spread(weights / weights.sum(), variances, np.append(_DF[keys[0, kept]] + f, f))
