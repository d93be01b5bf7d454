"""Components of the noise of a study: A/A twins, pairing by seed, and the documents of the evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

COVERAGE = 0.95


@dataclass(frozen=True)
class Component:
    """The variance among runs that differ in one kind of noise alone; `added` is its excess over that of `ulp`."""

    variance: float
    interval: tuple[float, float]
    df: float
    added: float


def components(twins: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Component]:
    """Estimates, by kind of A/A twin (`ulp`, `init`, `order`), the pooled variance within groups of runs that differ
    in it alone.

    A group is one run and its twins, for example the baseline's run of one seed. The smallest disturbance grows in any
    run, so the variance of `init` and `order` includes that of `ulp`; `added` is the rest, at least zero. Raises
    ValueError for a kind without a group of two finite losses.
    """
    from scipy.special import chdtri

    found: dict[str, Component] = {}
    for kind, groups in twins.items():
        known = [np.array(group)[np.isfinite(group)] for group in groups]
        df = float(sum(max(0, len(group) - 1) for group in known))
        if not df:
            raise ValueError(f"{kind}: expected a group of two finite losses or more")
        variance = float(sum(((group - group.mean()) ** 2).sum() for group in known if len(group)) / df)
        low, high = (df * variance / float(chdtri(df, p)) for p in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
        found[kind] = Component(variance, (low, high), df, variance)
    floor = found["ulp"].variance if "ulp" in found else 0.0
    return {
        kind: Component(c.variance, c.interval, c.df, c.variance if kind == "ulp" else max(0.0, c.variance - floor))
        for kind, c in found.items()
    }


@dataclass(frozen=True)
class Pairing:
    """The gain of pairing runs by seed. `r` is the correlation of the losses of two arms over seeds, `ratio` the
    variance of a difference within seeds over that between runs of different seeds, 1 - r: 1 is no gain, 0.25 is worth
    four times the seeds."""

    r: float
    ratio: float
    interval: tuple[float, float]  # of the ratio


def pairing(losses: np.ndarray) -> Pairing:
    """Measures the gain of pairing of arms [A, S] on the seeds that all finished; a ratio of mean squares, so the
    interval is exact for arms of equal variance (F). Raises ValueError for fewer than two such seeds or arms."""
    from scipy.special import fdtri

    y = np.asarray(losses, float)
    y = y[:, np.isfinite(y).all(0)]
    arms, seeds = y.shape
    if seeds < 2 or arms < 2:
        raise ValueError("expected two seeds or more that two arms or more finished")
    effects = y - y.mean(1, keepdims=True)
    between = arms * (effects.mean(0) ** 2).sum() / (seeds - 1)
    within = ((effects - effects.mean(0)) ** 2).sum() / ((arms - 1) * (seeds - 1))
    f = float(between / within) if within else math.inf
    # var(unpaired) / var(paired) = (within + (between - within) / arms) / within
    df = seeds - 1, (arms - 1) * (seeds - 1)
    tails = [float(fdtri(*df, p)) for p in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)]
    low, high = (arms / (arms - 1 + f / tail) for tail in tails)
    ratio = arms / (arms - 1 + f)
    return Pairing(1 - ratio, ratio, (low, high))


@dataclass(frozen=True)
class EvaluationNoise:
    """The noise of a loss difference by document.

    `se` is the standard error from the finite number of documents: the change with another validation set of this size,
    beyond the noise of seeds. `interaction` is the variance of one seed's difference that comes from its variation
    within documents from seed to seed; NaN for one seed.
    """

    se: float
    documents: int
    interaction: float


def evaluation_noise(baseline: ArrayLike, arm: ArrayLike, tokens: ArrayLike) -> EvaluationNoise:
    """Estimates the evaluation noise of an arm, from losses by document [S, K] of the baseline and the arm in runs of
    the same seeds, and the documents' tokens [K].

    Tokens of a document are not independent, but documents are. The difference is therefore a ratio of sums over
    documents, and its error that of the ratio estimator. Every run is evaluated on the same documents, so more seeds do
    not reduce it. Variation from seed to seed within a document belongs to the noise of seeds; it is subtracted here
    (the interaction of a two-way layout of random effects), so that nothing is counted twice. With one seed it cannot
    be separated. The rest is at least zero. Raises ValueError for other shapes and for one document.
    """
    a, b, n = (np.asarray(values, dtype=float) for values in (baseline, arm, tokens))
    if a.ndim != 2 or a.shape != b.shape or a.shape[1:] != n.shape or len(n) < 2:
        raise ValueError(
            f"expected seeds of as many losses as documents, two at least, got {a.shape}, {b.shape} and {n.shape}"
        )
    d, weight, k = b - a, n / n.sum(), len(n)
    mean = d.mean(0)
    spread = k / (k - 1) * float(((weight * (mean - weight @ mean)) ** 2).sum())
    if len(d) == 1:
        return EvaluationNoise(math.sqrt(spread), k, math.nan)
    rest = d - mean - (d @ weight)[:, None] + weight @ mean
    per_document = (rest**2).sum(0) / (len(d) - 1) * k / (k - 1)
    interaction = float((weight**2 * per_document).sum())
    return EvaluationNoise(math.sqrt(max(0.0, spread - interaction / len(d))), k, interaction)
