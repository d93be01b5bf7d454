"""The gain of every arm at every rung: effects of the rungs' studies, read as tokens by the baseline's own curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ratrain.statistics.budget_curve import BudgetCurve, Gain
from ratrain.statistics.paired import Effect, Table, effects
from ratrain.statistics.trend import Measured


@dataclass(frozen=True)
class RungLosses:
    """The final losses of one rung: of all arms by seed and document, and of the baseline by budget.

    `curve` holds the baseline's losses by seed for each budget over the rung's own, 1 included. `flops` is that of one
    run of the baseline; `costs` holds for each arm the log of its run's FLOPs over the baseline's.
    """

    number: int
    flops: float
    table: Table
    curve: Mapping[float, Mapping[int, float]]
    windows: str = ""  # digest of the validation windows
    costs: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)  # runs of arms without any loss that failed


@dataclass(frozen=True)
class Reading:
    """An arm at a rung: its effect in nats, and its gain in log tokens of the baseline, None beyond the curve.

    `seeds`, `evaluation` and `curve` are standard errors of the log gain. `cost` is the log of the FLOPs of its run
    over the baseline's.
    """

    effect: float
    gain: float | None
    seeds: float
    evaluation: float
    curve: float
    pairs: int
    diverged: int
    cost: float = 0.0

    @property
    def se(self) -> float:
        return math.hypot(self.seeds, self.evaluation, self.curve)


@dataclass(frozen=True)
class Readings:
    """All readings: by rung and arm, and the measured gains of every arm with a gain at each of `rungs[arm]`."""

    by_rung: tuple[dict[str, Reading], ...]
    measured: dict[str, Measured]
    rungs: dict[str, tuple[int, ...]]  # places of the rungs, from 0
    curves: tuple[BudgetCurve, ...]  # by rung


def read_gains(rungs: Sequence[RungLosses]) -> Readings:
    """Reads the gains of all arms. Raises ValueError, with the rung, if the baseline's curve cannot be had."""
    curves = tuple(map(_curve, rungs))
    found = [{effect.arm: effect for effect in effects(rung.table)} for rung in rungs]
    gains: list[dict[str, Gain | None]] = [
        {name: curves[k].gain(effect.value) if effect.seeds else None for name, effect in of.items()}
        for k, of in enumerate(found)
    ]
    readings = tuple(
        {name: _reading(effect, gains[k][name], rung) for name, effect in found[k].items()}
        for k, rung in enumerate(rungs)
    )
    names = dict.fromkeys(name for of in found for name in of)
    places = {
        name: tuple(k for k, of in enumerate(readings) if name in of and of[name].gain is not None) for name in names
    }
    measured = {name: _measured(name, places[name], rungs, found, gains) for name in names if places[name]}
    return Readings(readings, measured, places, curves)


def _curve(rung: RungLosses) -> BudgetCurve:
    try:
        return BudgetCurve.of(rung.curve)
    except ValueError as error:
        raise ValueError(f"rung {rung.number}: {error}") from None


def _reading(effect: Effect, gain: Gain | None, rung: RungLosses) -> Reading:
    row = rung.table.names.index(effect.arm)
    diverged = int(rung.table.diverged[row].sum())
    facts = {"pairs": effect.pairs, "diverged": diverged, "cost": rung.costs.get(effect.arm, 0.0)}
    if gain is None or effect.seeds is None:
        return Reading(effect.value, None, math.nan, math.nan, math.nan, **facts)
    per_nat = abs(gain.per_nat)
    evaluation = effect.noise.se * per_nat if effect.noise else 0.0
    return Reading(effect.value, gain.value, effect.seeds.sd * per_nat, evaluation, gain.curve_sd, **facts)


def _measured(
    name: str,
    places: Sequence[int],
    rungs: Sequence[RungLosses],
    found: Sequence[Mapping[str, Effect]],
    gains: Sequence[Mapping[str, Gain | None]],
) -> Measured:
    own = [gain for k in places if (gain := gains[k][name])]
    slopes = np.array([gain.per_nat for gain in own])
    seeds = [spread.scaled(gain.per_nat**2) for k, gain in zip(places, own, strict=True)
             if (spread := found[k][name].seeds)]  # fmt: skip
    evaluation = _evaluation([rungs[k] for k in places], [found[k][name] for k in places], name)
    shared = evaluation * np.outer(slopes, slopes) + np.diag([gain.curve_sd**2 for gain in own])
    x = np.log10([rungs[k].flops for k in places])
    return Measured(x, np.array([gain.value for gain in own]), tuple(seeds), shared)


def _evaluation(rungs: Sequence[RungLosses], found: Sequence[Effect], name: str) -> np.ndarray:  # [K, K]
    """Returns the covariance over rungs of an effect's error from the finite number of documents.

    Rungs with the same validation windows share it as far as the arm differs on the same documents.
    """
    errors = np.array([effect.noise.se if effect.noise else 0.0 for effect in found])
    parts = [_by_document(rung.table, name) for rung in rungs]
    covariance = np.diag(errors**2)
    for i in range(len(rungs)):
        for j in range(i):
            one, other = parts[i], parts[j]
            alike = rungs[i].windows == rungs[j].windows and len(one) == len(other)
            if alike and len(one) > 1:
                both = len(one) / (len(one) - 1) * float(one @ other)
                limit = errors[i] * errors[j]
                covariance[i, j] = covariance[j, i] = min(limit, max(-limit, both))
    return covariance


def _by_document(table: Table, name: str) -> np.ndarray:  # [K]
    """Returns each document's part in the error of the arm's mean difference; empty without losses by document."""
    row = table.names.index(name)
    known = np.isfinite(table.parts[[0, row]]).all((0, 2)) if len(table.sizes) > 1 else np.zeros(1, bool)
    if not known.any():
        return np.empty(0)
    difference = (table.parts[row, known] - table.parts[0, known]).mean(0)
    weight = table.sizes / table.sizes.sum()
    return weight * (difference - weight @ difference)
