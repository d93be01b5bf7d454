"""Assembles the figures of a study's page from its rows and conclusion."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row
from ratrain.report.curves import Curve, Run, curve_of, difference_of, kind_of
from ratrain.report.figures import gate_figures, sweep_figure
from ratrain.report.html import Markup, figure, folded, wide
from ratrain.report.study.figures import (
    Mark,
    curves_figure,
    detectable_figure,
    difference_figure,
    intervals_figure,
    kept_figures,
    ruler_figure,
)
from ratrain.report.study.table import SIGNS, first_log, headed, verdict_of
from ratrain.statistics.token_ruler import Ruler
from ratrain.storage.run_log import RunLog

_NOTHING = (math.nan, math.nan)
_FEW = 6  # most arms in one figure beside the baseline


def plots(
    study: Study, rows: Sequence[Row], shown: Sequence[Row], found: Conclusion | None
) -> tuple[dict[str, str], bytes]:
    """Draws the figures of each section, by its id, and the figure of the study's grids as PNG, empty if it has none.
    Raises UnavailableError without matplotlib."""
    sweep = _sweep(rows)
    drawn = {
        "effects": _effects(study, shown, found) + _grids(sweep),
        "curves": _curves(shown, found),
        "ruler": _ruler(study, rows, shown, found),
        "noise": _floor(study, found),
        "costs": _cost_figure(study, shown),
        "gates": _gates(shown),
    }
    return drawn, sweep


def _sweep(rows: Sequence[Row]) -> bytes:
    grids = [
        row for row in rows if row.losses and (row.arm.role == "base" or (row.arm.role == "arm" and row.arm.point))
    ]
    if not any(row.arm.point for row in grids):
        return b""
    points = [(row.arm.name.partition(" ")[0], row.arm.point, row.losses) for row in grids]
    return sweep_figure(points, base=rows[0].arm.name)


def _effects(study: Study, shown: Sequence[Row], found: Conclusion | None) -> str:
    marks, delta, base = [], study.plan.verdict["delta"], study.now.base.name
    for row in shown:
        verdict = verdict_of(row, found)
        if row.arm.role == "base":
            continue
        if verdict and math.isfinite(verdict.effect):
            marks.append(Mark(row.arm.name, verdict.effect, verdict.pointwise, verdict.interval, verdict.word))
        elif row.differences:
            ends = min(row.differences), max(row.differences)
            marks.append(Mark(row.arm.name, statistics.fmean(row.differences), _NOTHING, ends))
    caption = "Left of the line is better. Lines span the seeds; they are no intervals."
    if found:
        caption = (
            "Left of the line is better. Thin: the interval that holds for all arms and looks together; thick: for "
        )
        caption += "this arm alone. \N{BLACK DOWN-POINTING TRIANGLE} better, \N{BLACK UP-POINTING TRIANGLE} worse, "
        caption += "\N{BLACK DIAMOND} equivalent, \N{BLACK CIRCLE} inconclusive."
    caption += f" Shaded: within delta, {delta:g}." if delta else ""
    words = f"Effect of each arm on the validation loss against {base}, with intervals"
    drawing = intervals_figure("effects", words, marks, label=f"nats per token against {base}", band=delta)
    return figure(drawing, caption, beside=True)


def _grids(sweep: bytes) -> str:
    if not sweep:
        return ""
    words = "Validation loss over the values of the study's grids, with the range of the seeds"
    return "<h3>Grids</h3>" + figure(wide(sweep, words), f"{words}; the level line is the baseline.")


def _curves(shown: Sequence[Row], found: Conclusion | None) -> str:
    if not shown:
        return ""
    runs = {row.arm.name: _runs(row) for row in shown}
    kind = kind_of([log for of in runs.values() for log in of.values()])
    told = "validation losses" if kind == "validation" else "a moving average of the training losses"
    base, text = shown[0].arm.name, ""
    if len(shown) <= _FEW + 1:
        curves = {name: curve for name, of in runs.items() if (curve := curve_of(list(of.values()), kind))}
        drawing = curves_figure("curves", f"{kind} loss over steps, by arm", curves, base=base, label=f"{kind} loss")
        caption = f"Means over seeds of {told}; the band is from the least seed to the greatest. The first fall from "
        text = figure(drawing, f"{caption}chance may be off the top.", beside=True)
    if shown[0].arm.role != "base":
        return text
    small = _differences(shown[1:], found, [difference_of(runs[base], runs[row.arm.name], kind) for row in shown[1:]])
    words = (
        f"<p>Each arm minus {escape(base)}, step by step, over runs of the same seed ({told}). Bands span the seeds; "
    )
    words += "all axes are alike.</p>"
    return text + (f"<h3>Differences to the baseline</h3>{words}{small}" if small else "")


def _runs(row: Row) -> dict[Run, RunLog]:
    """Returns the logs for curves: those of the finished runs, or of all runs if none is finished."""
    done = {(run.init, run.data): run.log for run in row.runs if run.log and run.status == "done"}
    return done or {(run.init, run.data): run.log for run in row.runs if run.log}


def _differences(rows: Sequence[Row], found: Conclusion | None, curves: Sequence[Curve | None]) -> str:
    """Draws a small figure per arm, all with the same axes."""
    known = [curve for curve in curves if curve]
    if not known:
        return ""
    last = max(float(curve.steps[-1]) for curve in known)
    late = [np.abs([c.low, c.high])[:, c.steps >= 0.15 * last] for c in known]
    reaches = sorted(float(part.max()) for part in late if part.size) or [1.0]
    reach = 1.1 * min(reaches[-1], 4 * reaches[(len(reaches) - 1) // 2]) or 1.0
    text = ""
    for row, curve in zip(rows, curves, strict=True):
        if curve:
            name, verdict = row.arm.name, verdict_of(row, found)
            word = verdict.word if verdict else "inconclusive"
            sign = f' <span class="{word}" role="img" aria-label="{word}">{SIGNS[word]}</span>' if verdict else ""
            fewer = f" <small class=quiet>{curve.runs} of {len(row.runs)} seeds</small>"
            words = f"{name}: its loss minus the baseline's over steps"
            drawing = difference_figure(f"difference {name}", words, curve, word=word, reach=reach, last=last)
            text += figure(drawing, Markup(escape(name) + sign + fewer * (curve.runs < len(row.runs))))
    return f'<div class="many">{text}</div>'


def _ruler(study: Study, rows: Sequence[Row], shown: Sequence[Row], found: Conclusion | None) -> str:
    base = study.now.base
    told: dict[int, dict[int, float]] = {}
    for row in rows:
        if row.arm.role in ("base", "ruler") and row.arm.tokens and row.losses:
            done = {run.init: run.loss for run in row.runs if run.status == "done" and run.loss is not None}
            told[row.arm.tokens] = done
    if len(told) < 2 or base.tokens not in told:
        return ""
    try:
        ruler = Ruler.of(told)
    except ValueError as error:
        return f"<p>The ruler cannot be read: {escape(str(error))}.</p>"
    through, arms = _through(ruler), []
    for row in shown:
        verdict, gain = verdict_of(row, found), _gain(row, found)
        if verdict and gain is not None:
            loss = float(through(math.log(base.tokens))) + verdict.effect
            arms.append((row.arm.name, base.tokens * (1 + gain), loss, verdict.word))
    at = np.linspace(float(ruler.log_tokens[0]), float(ruler.log_tokens[-1]), 60)
    points = [(float(tokens), loss) for tokens, of in told.items() for loss in of.values()]
    words = "The baseline's validation loss over its training tokens, and where each arm stands on it"
    drawing = ruler_figure("ruler", words, curve=(np.exp(at), through(at)), points=points, arms=arms)
    caption = "The baseline's own curve, a dot per seed; an arm stands where the baseline would reach its loss."
    return f'<div class="pair">{figure(drawing, caption)}{_worths(shown, found)}</div>'


def _through(ruler: Ruler) -> Any:
    """Interpolates the curve of the ruler: loss over the logarithm of tokens."""
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(ruler.log_tokens, ruler.losses)


def _gain(row: Row, found: Conclusion | None) -> float | None:
    worth = found.worth.get(row.arm.name) if found else None
    return worth.tokens.gain if worth else None


def _worths(shown: Sequence[Row], found: Conclusion | None) -> str:
    marks = []
    for row in shown:
        worth, verdict = found.worth.get(row.arm.name) if found else None, verdict_of(row, found)
        if worth and verdict:
            gain, (low, high) = worth.tokens.gain, worth.tokens.interval
            ends = (-math.inf if low is None else low, math.inf if high is None else high)
            value, ends = (gain, ends) if gain is not None else (math.nan, _NOTHING)
            marks.append(Mark(row.arm.name, value, _NOTHING, ends, verdict.word))
    words = "What each arm is worth in training tokens"
    drawing = intervals_figure("worth", words, marks, label="worth in training tokens", percent=True)
    return figure(drawing, "Right of the line is better: the arm is worth so many more tokens to the baseline.")


def _floor(study: Study, found: Conclusion | None) -> str:
    if not found:
        return ""
    marks = []
    for kind, part in found.noise.items():
        low, high = map(math.sqrt, part.interval)
        marks.append(Mark(f"A/A {kind}", math.sqrt(part.variance), _NOTHING, (low, high), "equivalent"))
    single = [("pooled", found.judgement.sd), ("evaluation", max(found.evaluation.values(), default=math.nan))]
    marks += [Mark(name, value, _NOTHING, _NOTHING) for name, value in single if math.isfinite(value)]
    first = intervals_figure("noise", "Standard deviation of each source of noise", marks, label="nats per token")
    seeds, delta = len(study.plan.seeds), study.plan.verdict["delta"]
    words = "Smallest effect found four times of five, by seeds"
    second = detectable_figure("detectable", words, found.more, seeds=seeds, delta=delta)
    captions = "Standard deviations by source, with 95 % intervals.", "What so many seeds find four times of five."
    return f'<div class="pair">{figure(first, captions[0])}{figure(second, captions[1])}</div>'


def _cost_figure(study: Study, shown: Sequence[Row]) -> str:
    costs = {row.arm.name: study.costs.get(row.arm.name) for row in shown if row.arm.role != "base"}
    marks = [Mark(name, cost.ratio, _NOTHING, cost.interval) for name, cost in costs.items() if cost]
    words = "Time of a step in isolation as a ratio to the baseline's"
    drawing = intervals_figure("costs", words, marks, label="step time, baseline = 1", zero=1.0)
    return figure(drawing, "A step in isolation, with 95 % intervals; right of the line is slower.", beside=True)


def _gates(shown: Sequence[Row]) -> str:
    """Draws the probes of the first run of every arm with probes, collapsed since the figures are large."""
    text = ""
    for row in shown:
        log, name = first_log(row), row.arm.name
        if log.probes:
            maps = "".join(
                figure(wide(_lighter(png), f"Probes of {patch} in {name} by layer, head and step"))
                for patch, png in gate_figures(log).items()
            )
            kept = "".join(map(figure, kept_figures(name, log)))
            text += folded(headed(name, f"{', '.join(log.probes)}; seed {log.started.seed_init}"), kept + maps)
    return text


def _lighter(png: bytes) -> bytes:
    """Reduces a heat map to 128 colours, without visible loss: a quarter of its size."""
    from PIL import Image  # matplotlib needs it too

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).quantize(128, method=Image.Quantize.FASTOCTREE).save(out, "png", optimize=True)
    return out.getvalue()
