"""Paired differences of a study: the effect of every arm on the baseline's loss, and how well it is known.

Runs of one seed share batches, validation windows and the initial values of common weights. An effect is the mean
difference to the baseline over the seeds that both finished. Its variance is moderated over the arms (`moderation.py`).

Three seeds hardly show how variable an arm is, but hundreds of documents do. Two runs that differ by a rounding have
nearly equal losses on every document, two runs on other batches do not. Let the interaction be the part of a difference
that varies from seed to seed within a document. The variance of the mean difference is taken to be proportional to that
of the interaction, with one factor for all arms and a scatter around it, and its correlations between arms to be those
of the interaction. That removes the noise of the common baseline from the evidence on the factor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ratrain.statistics.moderation import Spread, moderated
from ratrain.statistics.noise import EvaluationNoise, evaluation_noise

_EQUAL = 0.5  # correlation of the differences of two arms to a baseline, if all three are equally variable
_SCATTER = 0.7  # of log variances around the interaction's, as runs of known truth show (docs/verdicts.md)
_LEAST = 1e-6  # of the median interaction: arms whose runs are equal
_FLAT = 0.02  # least eigenvalue of a correlation matrix
Losses = Mapping[str, Sequence[float | None]]  # by arm, one per seed; None: no loss; not finite: diverged
Parts = Mapping[str, Sequence[Sequence[float] | None]]  # by arm and seed, the losses by document


@dataclass(frozen=True, eq=False)
class Table:
    """The losses of a study, the baseline's in row 0; NaN for a run without a loss and for a diverged run.

    Tables of equal contents are equal, so that the effects at an earlier look are computed once (`effects`).
    """

    names: tuple[str, ...]
    losses: np.ndarray  # [A, S]
    diverged: np.ndarray  # [A, S], bool
    parts: np.ndarray  # [A, S, K], NaN where a run has none; K = 0 without documents
    sizes: np.ndarray  # [K], tokens of each document

    @classmethod
    def of(cls, losses: Losses, baseline: str, parts: Parts | None = None, sizes: Sequence[float] = ()) -> Table:
        """Builds the table. Raises ValueError without a loss of the baseline or of another arm."""
        if baseline not in losses or len(losses) < 2:
            raise ValueError(f"expected losses of {baseline!r} and of one more arm, got {', '.join(losses) or 'none'}")
        names = (baseline, *(name for name in losses if name != baseline))
        seeds = max(map(len, losses.values()))
        cells = [[*losses[name], *[None] * (seeds - len(losses[name]))] for name in names]
        values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
        diverged = np.array([[cell is not None and not math.isfinite(cell) for cell in row] for row in cells])
        told = np.full((len(names), seeds, len(sizes)), np.nan)
        for a, name in enumerate(names):
            for s, of in enumerate((parts or {}).get(name, ())):
                if of is not None and len(of) == len(sizes):
                    told[a, s] = of
        losses_known = np.where(np.isfinite(values), values, np.nan)
        return cls(names, losses_known, diverged.reshape(values.shape), told, np.asarray(sizes, float))

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the contents."""
        arrays = (self.losses, self.diverged, self.parts, self.sizes)
        said = [
            repr(self.names).encode(),
            *(repr(a.shape).encode() + np.ascontiguousarray(a).tobytes() for a in arrays),
        ]
        return hashlib.sha256(b"".join(said)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def until(self, seeds: int, stopped: Mapping[str, int]) -> Table:
        """Returns the first `seeds` seeds, without runs of an arm beyond the seeds at which it stopped."""
        y, diverged, parts = (part[:, :seeds].copy() for part in (self.losses, self.diverged, self.parts))
        for row, name in enumerate(self.names):
            if name in stopped:
                y[row, stopped[name] :], diverged[row, stopped[name] :], parts[row, stopped[name] :] = (
                    np.nan, False, np.nan,
                )  # fmt: skip
        return Table(self.names, y, diverged, parts, self.sizes)


@dataclass(frozen=True)
class Effect:
    """An arm's loss minus the baseline's: the mean over `pairs` seeds, in nats.

    `seeds` is the spread of that mean over other seeds, `spread` over other seeds and documents; None with one pair.
    `sd` is the standard deviation of the arm's own differences. `noise` is None without losses by document.
    """

    arm: str
    value: float
    pairs: int
    sd: float
    seeds: Spread | None
    spread: Spread | None
    noise: EvaluationNoise | None


@lru_cache(maxsize=64)
def effects(table: Table) -> tuple[Effect, ...]:
    """Estimates the effect of every arm but the baseline, in the order of the table."""
    differences = table.losses[1:] - table.losses[0]  # [A - 1, S]
    pairs = np.isfinite(differences).sum(1)
    means = [float(d[np.isfinite(d)].mean()) if n else math.nan for d, n in zip(differences, pairs, strict=True)]
    own = [float(d[np.isfinite(d)].var(ddof=1)) if n > 1 else math.nan for d, n in zip(differences, pairs, strict=True)]
    noise = [_noise(table, row) for row in range(1, len(table.names))]
    spreads, found = _spreads(table, np.array(own), pairs, noise), []
    for a, name in enumerate(table.names[1:]):
        spread, part, n = spreads[a], noise[a], int(pairs[a])
        seeds = spread.scaled(1 / n) if spread else None
        both = seeds.plus(part.se**2, part.documents - 1) if seeds and part else seeds
        found.append(Effect(name, means[a], n, math.sqrt(own[a]), seeds, both, part))
    return tuple(found)


def _spreads(
    table: Table, own: np.ndarray, pairs: np.ndarray, noise: Sequence[EvaluationNoise | None]
) -> list[Spread | None]:
    """Moderates the variances of the arms' differences, by their interactions with documents if all arms have them."""
    df, known = np.maximum(pairs - 1, 0), pairs > 1
    unlike = np.array([math.nan if part is None else part.interaction for part in noise])
    if known.sum() < 2 or not np.isfinite(unlike[known]).all() or not (unlike[known] > 0).any():
        return moderated(own, df, independent=_independent(table))
    unlike = np.maximum(unlike, _LEAST * np.median(unlike[known & (unlike > 0)]))
    evidence = _whitened(table, unlike, known)
    spreads = moderated(own / unlike, df, unlike, evidence=evidence, scatter=_SCATTER)
    return [spread.scaled(float(x)) if spread else None for spread, x in zip(spreads, unlike, strict=True)]


def _whitened(table: Table, unlike: np.ndarray, known: np.ndarray) -> np.ndarray:  # [A - 1]
    """Returns independent variances over seeds, one per arm, in units of the interaction: those of the differences
    after the correlations between arms, as documents show them, are taken out."""
    differences = (table.losses[1:] - table.losses[0]) / np.sqrt(unlike)[:, None]
    correlation = correlations(within_documents(table))
    count = np.isfinite(differences).sum(1, keepdims=True)
    rest = (differences - np.nanmean(np.where(known[:, None], differences, 0.0), 1, keepdims=True)) * np.sqrt(
        count / np.maximum(count - 1, 1)
    )
    total = np.zeros(len(rest))
    for seed in range(rest.shape[1]):
        at = np.flatnonzero(np.isfinite(rest[:, seed]) & known)
        values, vectors = np.linalg.eigh(correlation[np.ix_(at, at)])
        root = (vectors / np.sqrt(np.maximum(values, _FLAT))) @ vectors.T  # symmetric: direction a stays near arm a
        total[at] += (root @ rest[at, seed]) ** 2
    return np.where(known, total / np.maximum(count[:, 0], 1), math.nan)


def _independent(table: Table) -> float:
    """Returns the number of independent variances that those of the differences are worth, without documents.

    Two sample variances correlate by the square of the correlation of the differences; n variances with a mean
    correlation c are worth n / (1 + (n - 1) c). The correlation is that of equally variable arms, or that over seeds if
    it is higher.
    """
    differences = table.losses[1:] - table.losses[0]
    differences = differences[np.isfinite(differences).sum(1) > 1]
    arms = len(differences)
    if arms < 2:
        return float(arms)
    r = correlations(differences - np.nanmean(differences, 1, keepdims=True))
    alike = max(_EQUAL**2, float(np.mean(r[~np.eye(arms, dtype=bool)] ** 2)))
    return arms / (1 + (arms - 1) * alike)


def within_documents(table: Table) -> np.ndarray:  # [A - 1, S * K]
    """Returns the interaction of seeds and documents in every arm's difference to the baseline; NaN where unknown."""
    d = table.parts[1:] - table.parts[0]
    known = np.isfinite(d).all(2, keepdims=True)
    seeds = np.maximum(known.sum(1, keepdims=True), 1)
    d = np.where(known, d - np.where(known, d, 0.0).sum(1, keepdims=True) / seeds, np.nan)
    rest = d - d @ (table.sizes / table.sizes.sum())[:, None]
    return (rest * np.sqrt(table.sizes)).reshape(len(d), -1)


def correlations(rows: np.ndarray) -> np.ndarray:
    """Returns the correlations of rows of mean zero over the values that both have, 0 without any."""
    known = np.isfinite(rows)
    filled, count = np.where(known, rows, 0.0), known.astype(float)
    squares = (filled**2 @ count.T) * (count @ (filled**2).T)
    r = np.clip(np.where(squares > 0, filled @ filled.T / np.sqrt(np.where(squares > 0, squares, 1.0)), 0.0), -1, 1)
    np.fill_diagonal(r, 1.0)
    return r


def _noise(table: Table, row: int) -> EvaluationNoise | None:
    known = np.isfinite(table.parts[[0, row]]).all((0, 2))
    if len(table.sizes) < 2 or not known.any():
        return None
    return evaluation_noise(table.parts[0, known], table.parts[row, known], table.sizes)
