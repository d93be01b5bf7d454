"""The verdicts of a study as rows of tables: those of the plan, those at tuned points, those of the amended plan."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ratrain.ablation.conclusion import Conclusion, Contrast, Worth
from ratrain.ablation.record import PlannedArm, Study
from ratrain.ablation.results import Row
from ratrain.report.compare import NONE
from ratrain.report.html import Cell
from ratrain.report.study.table import loss_text, ratio, span, verdict_of, verdict_on
from ratrain.statistics.token_ruler import Reading
from ratrain.statistics.verdict import Verdict


def verdict_row(study: Study, row: Row, found: Conclusion | None) -> tuple[str | Cell, ...]:
    """Returns an arm's row: name, verdict, loss, effect, its worth in tokens, against time and against its control,
    then the ratios of its costs."""
    arm, verdict = row.arm, verdict_of(row, found)
    kind = {"control": "control", "base": "baseline"}.get(arm.role, f"A/A {arm.twin}" * (arm.twin != "none"))
    word = NONE if arm.role == "base" else _word(study, row, verdict, found)
    effect = f"{statistics.fmean(row.differences):+.4f}" if row.differences and arm.role != "base" else NONE
    if verdict and math.isfinite(verdict.effect):
        effect = Cell(f"{verdict.effect:+.4f}", (span(verdict.interval),))
    worth = found.worth.get(arm.name) if found else None
    contrast = found.controls.get(arm.name) if found else None
    return (
        Cell(arm.name, (kind,)), word, Cell(loss_text(row), (f"runs\N{NO-BREAK SPACE}{row.status}",)), effect,
        _reading(worth.tokens if worth else None), _against_time(worth), _against_control(contrast),
        *_ratios(study, arm),
    )  # fmt: skip


def _word(study: Study, row: Row, verdict: Verdict | None, found: Conclusion | None) -> Cell:
    notes, delta = ["exploratory"] if study.is_later(row.arm.name) else [], study.plan.verdict["delta"]
    lost = sum(run.status == "diverged" for run in row.runs)
    notes += [f"{lost} of {row.planned} diverged"] if lost else []
    if verdict and verdict.word == "equivalent" and max(map(abs, verdict.interval)) > delta:
        notes.append(f"within delta: {span(verdict.equivalence)}")
    if found and row.arm.name in found.needs:
        count = found.needs[row.arm.name]
        notes.append(f"would take {'over 1000' if count is None else f'about {count}'} seeds")
    return Cell(notes=tuple(notes), word=verdict.word if verdict else "")


def _reading(reading: Reading | None) -> str | Cell:
    if reading is None or reading.gain is None:
        return Cell("?", (reading.note.rpartition("curve, ")[2],)) if reading else NONE
    gain, _, interval = str(reading).partition("; ")[0].partition(" ")
    return Cell(gain, ("; ".join(filter(None, (interval, reading.note))),))


def _against_time(worth: Worth | None) -> str | Cell:
    if worth is None or worth.seconds is None:
        return NONE
    reading = "beyond the curve" if worth.seconds.gain is None else str(worth.seconds).partition("; ")[0]
    return Cell(notes=(reading,), word=worth.word or None)


def _against_control(contrast: Contrast | None) -> str | Cell:
    if contrast is None:
        return NONE
    return Cell(f"{contrast.effect:+.4f}", (f"{span(contrast.interval)} of {contrast.control}",))


def _ratios(study: Study, arm: PlannedArm) -> Iterator[str]:
    """Yields the ratios to the baseline of parameters, training FLOPs, KV cache and step time."""
    for name in ("parameters", "train_flops_per_token", "kv_bytes_per_token"):
        yield ratio(getattr(arm, name), getattr(study.now.base, name))
    cost = study.costs.get(arm.name)
    yield f"{cost.ratio:.3f}" if cost else NONE


class TunedVerdicts(NamedTuple):
    """A row per arm at its best point of the tuning grid, and one with its mean loss at each of the `points`."""

    rows: list[tuple[str | Cell, ...]]
    points: list[str]
    losses: list[tuple[str, ...]]


def tuned_verdicts(rows: Sequence[Row], found: Conclusion | None) -> TunedVerdicts | None:
    """Returns the verdicts on every arm at its best point of the tuning grid; None without tuning results."""
    if not found or not found.tuned:
        return None
    body, tuned = [], {row.arm.of: row for row in rows if row.arm.role == "tuned"}
    for arm, point in found.tuned.best.items():
        verdict = verdict_on(found.tuned.judgement, arm)
        loss = loss_text(tuned[arm]) if arm in tuned else NONE
        if tuned.get(arm) is not None and arm == rows[0].arm.name:
            body.append((Cell(arm, ("baseline",)), _point(point), NONE, loss, NONE, ""))
        else:
            body.append((arm, _point(point), Cell(word=verdict.word if verdict else ""), loss, *_judged(verdict)))
    losses = found.tuned.losses
    points = list(dict.fromkeys(point for of in losses.values() for point in of))
    tried = [(arm, *(_number(of.get(point, math.inf)) for point in points)) for arm, of in losses.items()]
    return TunedVerdicts(body, points, tried)


def _judged(verdict: Verdict | None) -> tuple[str | Cell, str]:
    """Returns the effect with its interval, and the reason of the verdict."""
    if verdict is None:
        return NONE, ""
    known = math.isfinite(verdict.effect)
    return Cell(f"{verdict.effect:+.4f}", (span(verdict.interval),)) if known else NONE, verdict.why


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else NONE


def _point(point: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in point.items())


def later_verdicts(found: Conclusion | None) -> list[tuple[str | Cell, ...]] | None:
    """Returns the exploratory verdicts of the amended plan; None if the plan was not amended."""
    if not found or not found.later:
        return None
    known = [v for v in found.later.verdicts if math.isfinite(v.effect)]
    return [(v.arm, Cell(word=v.word), str(v.seeds), *_judged(v)) for v in known]
