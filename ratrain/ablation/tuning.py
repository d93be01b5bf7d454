"""Tuning on one grid for every arm, with separate seeds: the best point of each arm, and the verdicts there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratrain.ablation.record import Study
from ratrain.ablation.results import Row, documents_of
from ratrain.statistics.verdict import Judgement, judge


@dataclass(frozen=True)
class Tuned:
    """The best grid point of every arm, the mean loss by point, and the verdicts at the best points."""

    best: dict[str, dict[str, Any]]  # by arm
    losses: dict[str, dict[str, float]]  # by arm and point, as text
    judgement: Judgement | None


def tuning(study: Study, rows: Sequence[Row]) -> Tuned | None:
    """Finds the best point of each arm whose tuning runs have all ended; a point with a diverged run is never best."""
    points: dict[str, dict[str, tuple[dict[str, Any], float]]] = {}
    for row in rows:
        if row.arm.role == "tuning" and all(run.ended for run in row.runs):
            results = [run.result for run in row.runs]
            bad = any(loss is None or not math.isfinite(loss) for loss in results)
            mean = math.inf if bad else float(np.mean([loss for loss in results if loss is not None]))
            points.setdefault(row.arm.of, {})[_text(row.arm.point)] = (row.arm.point, mean)
    planned = [arm.of for arm in study.now.of_role("tuning")]
    complete = {arm: of for arm, of in points.items() if len(of) == planned.count(arm)}
    complete = {arm: of for arm, of in complete.items() if any(math.isfinite(mean) for _, mean in of.values())}
    if not complete:
        return None
    best = {arm: min(of.values(), key=lambda found: found[1])[0] for arm, of in complete.items()}
    losses = {arm: {text: mean for text, (_, mean) in of.items()} for arm, of in complete.items()}
    return Tuned(best, losses, _judge_tuned(study, rows))


def _judge_tuned(study: Study, rows: Sequence[Row]) -> Judgement | None:
    """Judges arms and baseline at their own best points, as a separate family of comparisons."""
    tuned = {row.arm.of: row for row in rows if row.arm.role == "tuned"}
    base, rule = study.now.base.name, study.plan.verdict
    if base not in tuned or len(tuned) < 2 or not tuned[base].losses:
        return None
    documents = documents_of([tuned[base], *(row for name, row in tuned.items() if name != base)])
    return judge(
        {name: [run.result for run in row.runs] for name, row in tuned.items()}, base, planned=len(study.now.seeds),
        alpha=rule["alpha"], delta=rule["delta"], spending=rule["spending"], sizes=documents.sizes,
        parts={name: documents.parts.get(row.arm.name, []) for name, row in tuned.items()},
    )  # fmt: skip


def _text(point: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in point.items())


def edges(study: Study, tuned: Tuned) -> Iterator[tuple[str, str, Any]]:
    """Yields (arm, key, value) of each best value at an end of its numeric grid; a better one may lie beyond."""
    for arm, point in tuned.best.items():
        for key, value in point.items():
            axis = [a.point[key] for a in study.now.of_role("tuning") if a.of == arm]
            numbers = all(isinstance(v, (int, float)) for v in axis)
            if numbers and len({*axis}) > 1 and value in (min(axis), max(axis)):
                yield arm, key, value
