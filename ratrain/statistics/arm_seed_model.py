"""The arm + seed model of a study: the effect of every arm on the baseline's loss, with its standard error.

The model is loss = arm + seed + residual. It is fitted by least squares over the present cells, with one residual
variance for all arms: three seeds of twenty arms leave 38 degrees of freedom, an arm's own three losses only 2. If an
arm and the baseline ran the same seeds, the effect is the mean of their paired differences, whichever cells other arms
lack. There is no resampling: a bootstrap of fewer than eight seeds draws from too few values to have tails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Losses = Mapping[str, Sequence[float | None]]  # by arm, one per seed; None: no loss; not finite: diverged
SCREEN = 0.05  # chance of taking any of equally variable arms for more variable, and of taking any for less variable
LEAST = 10  # least degrees of freedom of a pool after an arm leaves it; a smaller pool would be biased by selection


@dataclass(frozen=True)
class Table:
    """The losses of a study, the baseline's in row 0; NaN for a run without a loss and for a diverged run."""

    names: tuple[str, ...]
    losses: np.ndarray  # [A, S]
    diverged: np.ndarray  # [A, S], bool

    @classmethod
    def of(cls, losses: Losses, baseline: str) -> Table:
        if baseline not in losses or len(losses) < 2:
            raise ValueError(f"expected losses of {baseline!r} and of one more arm, got {', '.join(losses) or 'none'}")
        names = (baseline, *(name for name in losses if name != baseline))
        seeds = max(map(len, losses.values()))
        cells = [[*losses[name], *[None] * (seeds - len(losses[name]))] for name in names]
        values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
        diverged = np.array([[cell is not None and not math.isfinite(cell) for cell in row] for row in cells])
        return cls(names, np.where(np.isfinite(values), values, np.nan), diverged.reshape(values.shape))

    @property
    def pairs(self) -> np.ndarray:  # [A]
        """The number of seeds that each arm shares with the baseline."""
        return (np.isfinite(self.losses) & np.isfinite(self.losses[0])).sum(1)


@dataclass(frozen=True)
class Effect:
    """An arm's loss minus the baseline's; `own` is the reason for an error of its own, empty for the pooled error."""

    arm: str
    value: float
    se: float
    df: float
    pairs: int  # seeds shared with the baseline
    own: str = ""
    steady: tuple[float, float] | None = None  # se and df of its own differences, if they vary significantly less


@dataclass(frozen=True)
class Effects:
    """All arms' effects; `sd` is the pooled residual standard deviation, with `df` degrees of freedom."""

    arms: tuple[Effect, ...]
    correlation: np.ndarray  # [k, k], of the effects' estimates
    sd: float
    df: float  # infinite if no arm is judged by the pool


def effects(losses: Losses | Table, baseline: str = "") -> Effects:
    """Estimates the effect of every arm but the baseline, in the order of `losses`.

    An F test compares the residuals of each arm with those of the others: the sum of squares that the arm adds against
    the rest, the most variable arm first. A significantly more variable arm is judged by its own differences; their
    mean over their standard error is Student's t whatever the other arms do. Such arms leave the pool if the pool keeps
    `LEAST` degrees of freedom. If the baseline is such an arm, every arm is judged by its own differences. Half of
    `SCREEN` is spent on the baseline, since it enters every comparison; the other half is divided among the arms.
    """
    table = losses if isinstance(losses, Table) else Table.of(losses, baseline)
    y, pairs = table.losses, table.pairs
    linked = np.where(pairs[:, None] > 0, y, np.nan)  # an arm without a seed in common with the baseline is no evidence
    noisy = _more_variable(linked)
    pooled = _Fit(linked)
    if noisy and 0 not in noisy:
        rest = _Fit(_blank(linked, noisy))
        pooled = rest if rest.df >= LEAST else pooled
    arms = []
    for a, name in enumerate(table.names[1:], start=1):
        if a in noisy or 0 in noisy:
            who = "its losses vary" if a in noisy else f"the losses of {table.names[0]} vary"
            own = f"{who} significantly more than those of the other arms"
            arms.append(Effect(name, *_own(y[a] - y[0]), int(pairs[a]), own=own))
        else:
            steady = _own(y[a] - y[0])[1:] if _steadier(pooled, y[a] - y[0], a) else None
            value, variance = pooled.effect(a)
            arms.append(Effect(name, value, math.sqrt(variance), pooled.df, int(pairs[a]), steady=steady))
    alone = all(arm.own for arm in arms)
    return Effects(tuple(arms), pooled.correlation(), math.sqrt(pooled.variance), math.inf if alone else pooled.df)


def _own(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of paired differences, its standard error and degrees of freedom."""
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return float(known.mean()) if len(known) else math.nan, math.nan, 0.0
    return float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known))), len(known) - 1.0


def _more_variable(y: np.ndarray) -> list[int]:
    """Returns the rows whose residuals vary significantly more than the others', the worst first; stops after the
    baseline."""
    from scipy.special import fdtrc

    found: list[int] = []
    while True:
        fit = _Fit(_blank(y, found))
        tests: dict[int, float] = {}  # p times its Bonferroni factor, so that all compare with SCREEN
        for a in range(len(y)):
            extra, extra_df, rest, rest_df = fit.without(a)
            if extra_df > 0 and rest_df > 0 and extra > 0:
                p = float(fdtrc(extra_df, rest_df, extra / extra_df / (rest / rest_df))) if rest else 0.0
                tests[a] = 2 * p * (len(y) - 1 if a else 1)
        worst = min(tests, key=tests.__getitem__, default=None)
        if worst is None or tests[worst] > SCREEN:
            return found
        found.append(worst)
        if worst == 0:
            return found


def _blank(y: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    return np.where(np.isin(np.arange(len(y)), rows)[:, None], np.nan, y)


def _steadier(pooled: _Fit, differences: np.ndarray, arm: int) -> bool:
    """Whether an arm's differences to the baseline vary significantly less than the residuals of all other arms (F
    test)."""
    from scipy.special import fdtr

    _, se, df = _own(differences)
    _, _, rest, rest_df = pooled.without(0, arm)
    if df <= 0 or rest_df <= 0 or rest <= 0:
        return False
    ratio = se**2 * (df + 1) / (2 * rest / rest_df)
    return bool(fdtr(df, rest_df, ratio) < SCREEN / len(pooled.y))


class _Fit:
    """Fits arm + seed by least squares over the finite cells of y."""

    def __init__(self, y: np.ndarray):
        present = np.isfinite(y)
        self.y, self._design = y, _design(present.tobytes(), *y.shape)
        cells = y[present] - (y[present].mean() if present.any() else 0.0)
        self._cells, residuals = cells, cells - self._design.hat @ cells
        self._least = 1e-12 * np.abs(cells).max(initial=0.0)  # smaller values are rounding errors, not differences
        self._residuals = np.where(np.abs(residuals) > self._least, residuals, 0.0)
        self.rss, self.df = float(self._residuals @ self._residuals), float(self._design.df)

    @property
    def variance(self) -> float:
        return self.rss / self.df if self.df else math.nan

    def effect(self, arm: int) -> tuple[float, float]:
        """Returns the estimate of row `arm` minus row 0 and its variance; NaN if either row has no cells."""
        row = self._design.contrasts[arm - 1]
        known = np.isfinite(self.y[[0, arm]]).any(1).all()
        if not known:
            return math.nan, math.nan
        value = float(row @ self._cells)
        return value if abs(value) > self._least else 0.0, float(row @ row) * self.variance

    def correlation(self) -> np.ndarray:  # [A - 1, A - 1]
        """Returns the correlations of the effects' estimates; 1/2, as in a full table, for a row without cells."""
        c = self._design.contrasts @ self._design.contrasts.T
        known = np.isfinite(self.y[1:]).any(1) & np.isfinite(self.y[0]).any()
        scale = np.sqrt(np.where(known, np.diag(c), 1.0))
        correlation = np.where(known[:, None] & known, c / np.outer(scale, scale), 0.5)
        np.fill_diagonal(correlation, 1.0)
        return correlation

    def without(self, *arms: int) -> tuple[float, int, float, int]:
        """Returns the sum of squares and degrees of freedom that these rows add, then the remaining ones."""
        at, inverse, df = self._design.left_out(arms)
        extra = float(self._residuals[at] @ inverse @ self._residuals[at])
        return extra, df, max(0.0, self.rss - extra), self._design.df - df


class _Design:
    """The part of a fit that depends on the pattern of present cells, and not on their values."""

    def __init__(self, present: np.ndarray):
        self._arm, seed = np.nonzero(present)
        arms, seeds = present.shape
        x = np.hstack([np.eye(arms)[self._arm], np.eye(seeds)[seed]])  # [N, A + S]
        inverse = np.linalg.pinv(x) if len(x) else np.zeros((arms + seeds, 0))
        self.hat = x @ inverse  # [N, N]
        self.df = len(x) - round(float(np.trace(self.hat)))
        self.contrasts = inverse[1:arms] - inverse[0]  # [A - 1, N]
        self._left_out: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, int]] = {}

    def left_out(self, arms: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns a mask of the cells of these rows, the quadratic form of their residuals that gives the sum of
        squares they add, and its rank."""
        if arms not in self._left_out:
            at = np.isin(self._arm, arms)
            block = np.eye(at.sum()) - self.hat[np.ix_(at, at)]
            values, vectors = np.linalg.eigh(block)
            kept = values > 1e-9
            inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
            self._left_out[arms] = at, inverse, int(kept.sum())
        return self._left_out[arms]


@lru_cache(maxsize=512)
def _design(present: bytes, arms: int, seeds: int) -> _Design:
    return _Design(np.frombuffer(present, dtype=bool).reshape(arms, seeds))
