"""The verdicts of a study on its page: those of the plan, those at tuned points, and those of the amended plan."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from ratrain.ablation.conclusion import Conclusion, Contrast, Worth
from ratrain.ablation.record import PlannedArm, Study
from ratrain.ablation.results import Row
from ratrain.report.compare import NONE
from ratrain.report.html import Markup, folded, grid
from ratrain.report.study.table import (
    COMPARED,
    SIGNS,
    chip,
    loss_text,
    ratio,
    span,
    two_lines,
    unbroken,
    verdict_of,
    verdict_on,
)
from ratrain.statistics.token_ruler import Reading
from ratrain.statistics.verdict import Verdict


def verdicts(study: Study, rows: Sequence[Row], shown: Sequence[Row], found: Conclusion | None) -> str:
    """Builds the count of each verdict, a table of the shown rows, and the reason for each verdict."""
    head = ("arm", "verdict", "val loss", "effect", "worth in tokens", "against time", "against its control")
    body = [_verdict_row(study, row, found) for row in shown]
    judged = [v for row in shown if row.arm.role != "base" and (v := verdict_of(row, found))]
    count = Counter(verdict.word for verdict in judged)
    tally = "".join(f"<li>{chip(word)} {count[word]}</li>" for word in SIGNS if count[word])
    none = "<p>No verdict yet: it takes two seeds that are done, of the baseline and of an arm.</p>"
    text = f'<ul class="chips">{tally}</ul>' if tally else none
    text += f"<p>An effect is the validation loss minus that of <b>{escape(study.now.base.name)}</b>: below zero is "
    text += "better. Its interval holds for all arms and looks together. Costs are ratios to the baseline's.</p>"
    costs, spare = ("parameters", "FLOPs", "KV cache", "step time"), (*head[4:], "step time")
    text += grid((*head, *costs), body, first="base", spare=spare)
    if waiting := [row.arm.name for row in rows if row.arm.role in COMPARED and not row.begun]:
        text += f"<p class=quiet>Not begun, and in no figure: {escape(', '.join(waiting))}.</p>"
    reasons = "".join(f"<dt>{escape(v.arm)}: {v.word}</dt><dd>{escape(v.why)}</dd>" for v in judged)
    return text + folded("Why, arm by arm", f'<dl class="reasons">{reasons}</dl>' if judged else "")


def _verdict_row(study: Study, row: Row, found: Conclusion | None) -> tuple[str, ...]:
    arm, verdict = row.arm, verdict_of(row, found)
    kind = {"control": "control", "base": "baseline"}.get(arm.role, f"A/A {arm.twin}" * (arm.twin != "none"))
    word = NONE if arm.role == "base" else _word(study, row, verdict)
    effect = f"{statistics.fmean(row.differences):+.4f}" if row.differences and arm.role != "base" else NONE
    if verdict and math.isfinite(verdict.effect):
        effect = two_lines(f"{verdict.effect:+.4f}", span(verdict.interval))
    worth = found.worth.get(arm.name) if found else None
    contrast = found.controls.get(arm.name) if found else None
    return (
        two_lines(arm.name, kind), word, two_lines(loss_text(row), f"runs\N{NO-BREAK SPACE}{row.status}"), effect,
        _reading(worth.tokens if worth else None), _against_time(worth), _against_control(contrast),
        *_ratios(study, arm),
    )  # fmt: skip


def _word(study: Study, row: Row, verdict: Verdict | None) -> Markup:
    notes, delta = ["exploratory"] if study.is_later(row.arm.name) else [], study.plan.verdict["delta"]
    lost = sum(run.status == "diverged" for run in row.runs)
    notes += [f"{lost} of {len(row.runs)} diverged"] if lost else []
    if verdict and verdict.word == "equivalent" and max(map(abs, verdict.interval)) > delta:
        notes.append(f"its own differences vary less: {span(verdict.equivalence)}")
    return Markup(chip(verdict.word if verdict else "") + "".join(f"<small>{unbroken(note)}</small>" for note in notes))


def _reading(reading: Reading | None) -> str:
    if reading is None or reading.gain is None:
        return two_lines("?", reading.note.rpartition("curve, ")[2]) if reading else NONE
    gain, _, interval = str(reading).partition("; ")[0].partition(" ")
    return two_lines(gain, "; ".join(filter(None, (interval, reading.note))))


def _against_time(worth: Worth | None) -> str:
    if worth is None or worth.seconds is None:
        return NONE
    reading = "beyond the curve" if worth.seconds.gain is None else str(worth.seconds).partition("; ")[0]
    return Markup(f"{chip(worth.word) if worth.word else ''}<small>{unbroken(reading)}</small>")


def _against_control(contrast: Contrast | None) -> str:
    if contrast is None:
        return NONE
    return two_lines(f"{contrast.effect:+.4f}", f"{span(contrast.interval)} of {contrast.control}")


def _ratios(study: Study, arm: PlannedArm) -> Iterator[str]:
    """Yields the ratios to the baseline of parameters, training FLOPs, KV cache and step time."""
    for name in ("parameters", "train_flops_per_token", "kv_bytes_per_token"):
        yield ratio(getattr(arm, name), getattr(study.now.base, name))
    cost = study.costs.get(arm.name)
    yield f"{cost.ratio:.3f}" if cost else NONE


def tuned_verdicts(rows: Sequence[Row], found: Conclusion | None) -> str:
    """Builds the verdicts on every arm at its best point of the tuning grid; empty without tuning results."""
    if not found or not found.tuned:
        return ""
    body, tuned = [], {row.arm.of: row for row in rows if row.arm.role == "tuned"}
    for arm, point in found.tuned.best.items():
        verdict = verdict_on(found.tuned.judgement, arm)
        loss = loss_text(tuned[arm]) if arm in tuned else NONE
        if tuned.get(arm) is not None and arm == rows[0].arm.name:
            body.append((two_lines(arm, "baseline"), _point(point), NONE, loss, NONE, ""))
        else:
            body.append((arm, _point(point), chip(verdict.word if verdict else ""), loss, *_judged(verdict)))
    losses = found.tuned.losses
    points = dict.fromkeys(point for of in losses.values() for point in of)
    tried = [(arm, *(_number(of.get(point, math.inf)) for point in points)) for arm, of in losses.items()]
    text = "<p>Every arm and the baseline at the point of the same grid that was best for it on seeds apart.</p>"
    text += grid(("arm", "best point", "verdict", "val loss", "effect", "why"), body)
    return text + folded("Mean losses on the tuning seeds", grid(("arm", *points), tried))


def _judged(verdict: Verdict | None) -> tuple[str, str]:
    """Returns the effect with its interval, and the reason of the verdict."""
    if verdict is None:
        return NONE, ""
    known = math.isfinite(verdict.effect)
    return two_lines(f"{verdict.effect:+.4f}", span(verdict.interval)) if known else NONE, verdict.why


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else NONE


def _point(point: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in point.items())


def later_verdicts(found: Conclusion | None) -> str:
    """Builds the exploratory verdicts of the amended plan; empty if the plan was not amended."""
    if not found or not found.later:
        return ""
    known = [v for v in found.later.verdicts if math.isfinite(v.effect)]
    body = [(v.arm, chip(v.word), str(v.seeds), *_judged(v)) for v in known]
    text = "<p>Exploratory: the same rules over all that is there now. What was seen before may have led to what was "
    text += "added, so these are no verdicts of the plan.</p>"
    return text + folded("All arms, with what was added", grid(("arm", "verdict", "seeds", "effect", "why"), body))
