"""Loss curves over steps: of one run, of the seeds of an arm, and of an arm minus the baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ratrain.storage.run_log import RunLog

Kind = Literal["validation", "training"]
Run = tuple[int, int]  # seeds

_POINTS = 150  # most points of a curve; more would not be visible
_SMOOTH = 40  # a training loss is averaged over 1/_SMOOTH of the run
_LEAST = 8  # least steps of that average; at most a quarter of the run


@dataclass(frozen=True)
class Curve:
    """A loss over steps: mean, minimum and maximum over the runs."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


def kind_of(logs: Sequence[RunLog]) -> Kind:
    """Selects the loss to plot: validation if at least half of the runs have three evaluations, else training."""
    many = sum(len(log.evaluated) >= 3 for log in logs)
    return "validation" if logs and 2 * many >= len(logs) else "training"


def curve_of(logs: Sequence[RunLog], kind: Kind) -> Curve | None:
    """Averages the runs over the steps that the most runs reached; None without any."""
    return _over([_told(log, kind) for log in logs], smooth=kind == "training")


def difference_of(base: Mapping[Run, RunLog], arm: Mapping[Run, RunLog], kind: Kind) -> Curve | None:
    """Averages the arm's loss minus the baseline's, step by step, over runs with the same seeds; None without any."""
    both = [(_told(base[seeds], kind), _told(log, kind)) for seeds, log in arm.items() if seeds in base]
    return _over([{step: b[step] - a[step] for step in b if step in a} for a, b in both], smooth=kind == "training")


def _told(log: RunLog, kind: Kind) -> dict[int, float]:
    if kind == "validation":
        return {event.step: event.loss for event in log.evaluated if math.isfinite(event.loss)}
    return {step: loss for step, loss in zip(*log.losses(), strict=True) if math.isfinite(loss)}


def _over(series: Sequence[Mapping[int, float]], *, smooth: bool) -> Curve | None:
    counts = Counter(step for one in series for step in one)
    steps = sorted(step for step, count in counts.items() if count == max(counts.values()))
    whole = [one for one in series if steps and all(step in one for step in steps)]
    if not whole:
        return None
    values, at = np.array([[one[step] for step in steps] for one in whole]), np.array(steps, dtype=float)
    if smooth:
        width = max(1, min(len(steps) // 4, max(_LEAST, len(steps) // _SMOOTH)))
        kernel = np.ones(width) / width
        values = np.stack([np.convolve(row, kernel, "valid") for row in values])
        at = np.convolve(at, kernel, "valid")
    thin = np.unique(np.linspace(0, len(at) - 1, min(len(at), _POINTS)).round().astype(int))
    values = values[:, thin]
    return Curve(at[thin], values.mean(0), values.min(0), values.max(0), len(whole))
