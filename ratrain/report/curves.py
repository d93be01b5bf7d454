"""Losses over steps: of one run or of the seeds of an arm, and of an arm against the baseline."""

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

_POINTS = 150  # of a curve, more than which nobody sees
_SMOOTH = 40  # a training loss is averaged over this part of the run, and over no fewer steps than the next
_LEAST = 8


@dataclass(frozen=True)
class Curve:
    """A loss over steps: the mean of the runs, the least and the greatest of them."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


def kind_of(logs: Sequence[RunLog]) -> Kind:
    """Which loss tells of the way: the evaluations, or the training losses where there are hardly any."""
    many = sum(len(log.evaluated) >= 3 for log in logs)
    return "validation" if logs and 2 * many >= len(logs) else "training"


def curve_of(logs: Sequence[RunLog], kind: Kind) -> Curve | None:
    """Over the steps that most of the runs reached."""
    return _over([_told(log, kind) for log in logs], smooth=kind == "training")


def difference_of(base: Mapping[Run, RunLog], arm: Mapping[Run, RunLog], kind: Kind) -> Curve | None:
    """The arm's loss minus the baseline's, step by step, of runs with the same seeds."""
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
