"""Dunnett's family of comparisons of many arms with one baseline, also for tables with missing cells.

The estimates of k effects share the baseline, so they are correlated, and they share one estimate of the variance.
Their correlations are modelled as products of two loadings. The model is exact for a table without gaps, and nearly
exact otherwise. The distribution of the largest |t| is then a double integral. The trapezoid rule, spectrally accurate
here, evaluates it without sampling and without tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

HALF = math.sqrt(0.5)  # the loading of every arm in a table without gaps: correlation 1/2
_RESOLVED = 1e-8  # the integral does not resolve lower levels; Bonferroni's bound is as good there


@dataclass(frozen=True)
class Family:
    """k comparisons with one baseline, and the degrees of freedom of their shared variance."""

    loadings: tuple[float, ...]
    df: float

    @classmethod
    def full(cls, arms: int, df: float) -> Family:
        """Builds the family of a table without gaps."""
        return cls((HALF,) * arms, df)

    @classmethod
    def of(cls, correlation: np.ndarray, df: float) -> Family:
        """Fits loadings whose products approximate the correlations, by least squares off the diagonal."""
        r = correlation - np.diag(np.diag(correlation))
        loadings = np.full(len(r), HALF)
        for _ in range(100 if len(r) > 1 else 0):
            new = r @ loadings / (loadings @ loadings - loadings**2)
            last, loadings = loadings, np.clip(np.sqrt(np.clip(new, 0, None) * loadings), 0.0, 0.999)  # damped
            if np.abs(loadings - last).max() < 1e-7:
                break
        return cls(tuple(np.round(loadings, 6).tolist()), df)

    def p(self, t: np.ndarray) -> np.ndarray:
        """Returns adjusted two-sided p-values: the chance that the largest |t| exceeds each |t| if all effects are
        zero."""
        return _tail(self, np.abs(np.atleast_1d(t)))

    def critical(self, level: float) -> float:
        """Returns the bound that the largest |t| exceeds with probability `level` if all effects are zero."""
        return _critical(self, level)

    def one_sided(self, level: float) -> float:
        """Returns the critical t of an equivalence test on both sides, for a total false claim rate of `level`.

        A claim on an arm can be false in three exclusive ways: the effect is zero and the arm is called better or
        worse; or the effect is at least delta, or at most -delta, and the arm is called equivalent. Each way is
        therefore tested at the full level (the partitioning principle; Goeman, Solari & Stijnen, Statistics in Medicine
        29, 2010), and the equivalence test of an arm is one-sided. Over arms the worst mixture of the three decides,
        found by enumeration; for a table with gaps, at the arms' mean loading.
        """
        return _one_sided(len(self.loadings), float(np.mean(self.loadings)), self.df, level)


def t_cdf(t: float, df: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(ndtr(t) if math.isinf(df) else stdtr(df, t))


def t_quantile(p: float, df: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(p) if math.isinf(df) else stdtrit(df, p))


def carried(t: float, df: float, to: float) -> float:
    """Converts `t` with `df` degrees of freedom to the t of equal tail probability with `to` degrees of freedom."""
    if df == to:
        return t
    return math.copysign(t_quantile(t_cdf(-abs(t), df), to), t)


@lru_cache(maxsize=64)
def _nodes(df: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns quadrature nodes and weights of the shared standard deviation estimate (relative to the true one), then
    of the baseline."""
    from scipy.special import chdtri

    z = np.linspace(-8.0, 8.0, 49)
    if math.isinf(df):
        s, log_w = np.ones(1), np.zeros(1)
    else:
        low, high = np.sqrt(chdtri(df, [1 - 1e-12, 1e-14]) / df)
        u = np.linspace(math.log(low), math.log(high), 65 if df < 8 else 41)  # errors below 1e-6, and of 1e-9
        s, log_w = np.exp(u), df * u - df * np.exp(2 * u) / 2
    w, v = np.exp(log_w - log_w.max()), np.exp(-(z**2) / 2)
    return s, w / w.sum(), z, v / v.sum()


def _sides(c: np.ndarray, loading: float, df: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chances that one arm's t is below c and below -c, given the shared deviation and baseline: [..., S,
    Z] each."""
    from scipy.special import ndtr

    s, _, z, _ = _nodes(df)
    edge, shift = c[..., None, None] * s[:, None], loading * z
    width = math.sqrt(1 - loading**2)
    return ndtr((edge - shift) / width), ndtr((-edge - shift) / width)


def _mean(values: np.ndarray, df: float) -> np.ndarray:
    """Averages over the shared deviation and baseline, the last two axes."""
    _, w, _, v = _nodes(df)
    return values @ v @ w


def _tail(family: Family, c: np.ndarray) -> np.ndarray:
    inside = 0.0  # log of the chance that all |t| are within c
    values, counts = np.unique(family.loadings, return_counts=True)
    for loading, count in zip(values.tolist(), counts.tolist(), strict=True):
        below, far = _sides(c, 0.0 if len(family.loadings) == 1 else loading, family.df)
        inside = inside + count * np.log(np.maximum(below - far, 1e-300))
    return np.clip(_mean(-np.expm1(inside), family.df), 0.0, 1.0)


@lru_cache(maxsize=1024)
def _critical(family: Family, level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a level is between 0 and 1, got {level}")
    single, bonferroni = (-t_quantile(level / 2 / n, family.df) for n in (1, len(family.loadings)))
    if len(family.loadings) == 1:
        return single
    if level < _RESOLVED:
        return bonferroni
    return root(lambda c: float(_tail(family, np.array([c]))[0]) - level, single - 1e-6, bonferroni + 1e-6)


@lru_cache(maxsize=1024)
def _one_sided(arms: int, loading: float, df: float, level: float) -> float:
    single, bonferroni = (-t_quantile(level / n, df) for n in (1, arms))
    if arms == 1:
        return single
    if level < _RESOLVED:
        return bonferroni
    two_sided = _critical(Family((loading,) * arms, df), level)
    # counts of arms with effect zero, delta, -delta
    mixtures = np.array([(zero, up, arms - zero - up) for zero in range(arms) for up in range(arms - zero + 1)])
    below, far = _sides(np.array(two_sided), loading, df)
    none = np.log(np.maximum(below - far, 1e-300))

    def excess(c: float) -> float:
        under, beyond = _sides(np.array(c), loading, df)
        logs = np.stack([none, np.log(np.maximum(1 - beyond, 1e-300)), np.log(np.maximum(under, 1e-300))])
        errors = _mean(-np.expm1(np.tensordot(mixtures, logs, 1)), df)
        return float(errors.max()) - level

    # at the two-sided critical value the level of every mixture is bounded by that of the two-sided family
    return root(excess, single - 1e-6, two_sided) if excess(two_sided) < 0 else two_sided


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Finds the zero of a function that changes its sign between `low` and `high`."""
    from scipy.optimize import root_scalar

    return float(root_scalar(function, bracket=(low, high), xtol=1e-6).root)
