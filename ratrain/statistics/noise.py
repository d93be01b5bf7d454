"""Components of the noise of a study: A/A twins, pairing by seed, and the documents of the evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ratrain.statistics.arm_seed_model import Losses, Table

COVERAGE = 0.95
COVERAGE_LOST = 1 - COVERAGE  # chance that a study takes any of equal arms for unequal


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
    """The variance of a difference within seeds over that between runs of different seeds: 1 is no gain, 0.25 is worth
    four times the seeds."""

    ratio: float
    interval: tuple[float, float]


def pairing(losses: Losses, baseline: str) -> Pairing:
    """Measures the gain of pairing on the seeds that all arms finished; a ratio of mean squares, so the interval is
    exact (F). Raises ValueError for fewer than two such seeds."""
    from scipy.special import fdtri

    y = Table.of(losses, baseline).losses
    y = y[:, np.isfinite(y).all(0)]
    arms, seeds = y.shape
    if seeds < 2:
        raise ValueError("expected two seeds or more that every arm finished")
    effects = y - y.mean(1, keepdims=True)
    between = arms * (effects.mean(0) ** 2).sum() / (seeds - 1)
    within = ((effects - effects.mean(0)) ** 2).sum() / ((arms - 1) * (seeds - 1))
    f = float(between / within) if within else math.inf
    # var(unpaired) / var(paired) = (within + (between - within) / arms) / within
    df = seeds - 1, (arms - 1) * (seeds - 1)
    tails = [float(fdtri(*df, p)) for p in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)]
    low, high = (arms / (arms - 1 + f / tail) for tail in tails)
    return Pairing(arms / (arms - 1 + f), (low, high))


@dataclass(frozen=True)
class EvaluationNoise:
    """The standard error of a loss difference from the finite number of documents: its change with another validation
    set of this size, beyond the noise of seeds."""

    se: float
    documents: int


Parts = Sequence[Sequence[float]]  # [S, K], the mean loss of every document in runs of S seeds


def evaluation_noise(pairs: Mapping[str, tuple[Parts, Parts]], tokens: Sequence[int]) -> dict[str, EvaluationNoise]:
    """Estimates the evaluation noise by arm, from the losses per document of the baseline and the arm in runs of the
    same seeds, and the documents' tokens [K].

    Tokens of a document are not independent, but documents are. The difference is therefore a ratio of sums over
    documents, and its error that of the ratio estimator. Every run is evaluated on the same documents, so more seeds do
    not reduce it. Variation from seed to seed within a document belongs to the noise of seeds; it is subtracted here
    (the interaction of a two-way layout of random effects), so that nothing is counted twice. With one seed it cannot
    be separated. The rest is estimated poorly from few documents, and is at least zero. Arms therefore share one
    estimate, unless an F test finds that an arm varies more, or less, from document to document than the others.
    """
    found = {arm: _layout(*pair, tokens) for arm, pair in pairs.items()}
    shared, k = dict(found), len(tokens)
    while True:  # the most variable arm first, as for the noise of seeds
        pooled = max(0.0, float(np.mean([spread - within for spread, within in shared.values()])))
        tails = {arm: _tails(*part, pooled, k, len(found)) for arm, part in found.items()}
        worst = min(shared, key=lambda arm: tails[arm][1])
        if tails[worst][1] * len(found) > COVERAGE_LOST or len(shared) == 1:
            break
        del shared[worst]
    less = {arm for arm in shared if tails[arm][0] * len(found) < COVERAGE_LOST}
    own = {
        arm: max(0.0, spread - within) for arm, (spread, within) in found.items() if arm not in shared or arm in less
    }
    return {arm: EvaluationNoise(math.sqrt(own.get(arm, pooled)), k) for arm in found}


def _tails(spread: float, within: float, pooled: float, documents: int, arms: int) -> tuple[float, float]:
    """Returns the probabilities of a spread this small and this large, if the arm varies from document to document as
    the others do."""
    from scipy.special import fdtr, fdtrc

    df, expected = (documents - 1.0, (documents - 1.0) * arms), pooled + within
    f = spread / expected if expected else 1.0
    return float(fdtr(*df, f)), float(fdtrc(*df, f))


def _layout(baseline: Parts, arm: Parts, tokens: Sequence[int]) -> tuple[float, float]:
    """Returns the variance of the mean difference over documents, and the part of it due to seeds within documents."""
    a, b, n = (np.asarray(values, dtype=float) for values in (baseline, arm, tokens))
    if a.ndim != 2 or a.shape != b.shape or a.shape[1:] != n.shape or len(n) < 2:
        raise ValueError(
            f"expected seeds of as many losses as documents, two at least, got {a.shape}, {b.shape} and {n.shape}"
        )
    d, weight, k = b - a, n / n.sum(), len(n)
    mean = d.mean(0)
    spread = k / (k - 1) * float(((weight * (mean - weight @ mean)) ** 2).sum())
    if len(d) == 1:
        return spread, 0.0
    rest = d - mean - (d @ weight)[:, None] + weight @ mean
    per_document = (rest**2).sum(0) / (len(d) - 1) * k / (k - 1)
    return spread, float((weight**2 * per_document).sum()) / len(d)
