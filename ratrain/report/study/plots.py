"""Assembles the figures of a study's page from its rows and conclusion."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row
from ratrain.report.curves import Curve, Kind, Run, curve_of, difference_of, kind_of
from ratrain.report.figures import gate_figures, sweep_figure
from ratrain.report.study.figures import (
    Mark,
    curves_figure,
    detectable_figure,
    difference_figure,
    intervals_figure,
    kept_figures,
    ruler_figure,
)
from ratrain.report.study.table import first_log, verdict_of
from ratrain.statistics.token_ruler import Ruler
from ratrain.storage.run_log import RunLog

_NOTHING = (math.nan, math.nan)
_FEW = 6  # most arms in one figure beside the baseline


class Curves(NamedTuple):
    """Loss curves of all arms in one drawing, empty for many arms, and those of each arm minus the baseline."""

    kind: Kind
    drawing: str
    differences: list[Difference]


class Difference(NamedTuple):
    """The curve of one arm minus the baseline, over `seeds` of the `planned` ones; the verdict is empty without one."""

    arm: str
    drawing: str
    verdict: str
    seeds: int
    planned: int


class Ruled(NamedTuple):
    """The baseline's curve over training tokens, and the worth of each arm; `fault` tells why there is no curve."""

    drawing: str = ""
    worths: str = ""
    fault: str = ""


class Gates(NamedTuple):
    """The probes of one run: drawings of its kept shares, and heat maps as PNG by patch."""

    arm: str
    patches: list[str]
    seed: int
    kept: list[str]
    maps: dict[str, bytes]


class Plots(NamedTuple):
    """The figures of a study's page: drawings as SVG, of which an empty one has nothing to show, and `sweep`, the
    losses over the study's grids, as PNG."""

    effects: str = ""
    sweep: bytes = b""
    curves: Curves | None = None
    ruler: Ruled | None = None
    noise: tuple[str, ...] = ()  # by source, and the smallest detectable effect
    costs: str = ""
    gates: Sequence[Gates] = ()


def plots(study: Study, rows: Sequence[Row], shown: Sequence[Row], found: Conclusion | None) -> Plots:
    """Draws the figures of each section. Raises UnavailableError without matplotlib."""
    return Plots(
        effects=_effects(study, shown, found),
        sweep=_sweep(rows),
        curves=_curves(shown, found) if shown else None,
        ruler=_ruler(study, rows, shown, found),
        noise=_floor(study, found) if found else (),
        costs=_costs(study, shown),
        gates=list(_gates(shown)),
    )


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
    words = f"Effect of each arm on the validation loss against {base}, with intervals"
    return intervals_figure("effects", words, marks, label=f"nats per token against {base}", band=delta)


def _curves(shown: Sequence[Row], found: Conclusion | None) -> Curves:
    runs = {row.arm.name: _runs(row) for row in shown}
    kind = kind_of([log for of in runs.values() for log in of.values()])
    base, drawing = shown[0].arm.name, ""
    if len(shown) <= _FEW + 1:
        curves = {name: curve for name, of in runs.items() if (curve := curve_of(list(of.values()), kind))}
        drawing = curves_figure("curves", f"{kind} loss over steps, by arm", curves, base=base, label=f"{kind} loss")
    if shown[0].arm.role != "base":
        return Curves(kind, drawing, [])
    differences = [difference_of(runs[base], runs[row.arm.name], kind) for row in shown[1:]]
    return Curves(kind, drawing, _differences(shown[1:], found, differences))


def _runs(row: Row) -> dict[Run, RunLog]:
    """Returns the logs for curves: those of the finished runs, or of all runs if none is finished."""
    done = {(run.init, run.data): run.log for run in row.runs if run.log and run.status == "done"}
    return done or {(run.init, run.data): run.log for run in row.runs if run.log}


def _differences(rows: Sequence[Row], found: Conclusion | None, curves: Sequence[Curve | None]) -> list[Difference]:
    """Draws a small figure per arm, all with the same axes."""
    known = [curve for curve in curves if curve]
    if not known:
        return []
    last = max(float(curve.steps[-1]) for curve in known)
    late = [np.abs([c.low, c.high])[:, c.steps >= 0.15 * last] for c in known]
    reaches = sorted(float(part.max()) for part in late if part.size) or [1.0]
    reach = 1.1 * min(reaches[-1], 4 * reaches[(len(reaches) - 1) // 2]) or 1.0
    drawn = []
    for row, curve in zip(rows, curves, strict=True):
        if curve:
            name, verdict = row.arm.name, verdict_of(row, found)
            words = f"{name}: its loss minus the baseline's over steps"
            word = verdict.word if verdict else "inconclusive"
            drawing = difference_figure(f"difference {name}", words, curve, word=word, reach=reach, last=last)
            drawn.append(Difference(name, drawing, verdict.word if verdict else "", curve.runs, len(row.runs)))
    return drawn


def _ruler(study: Study, rows: Sequence[Row], shown: Sequence[Row], found: Conclusion | None) -> Ruled | None:
    base = study.now.base
    told: dict[int, dict[int, float]] = {}
    for row in rows:
        if row.arm.role in ("base", "ruler") and row.arm.tokens and row.losses:
            done = {run.init: run.loss for run in row.runs if run.status == "done" and run.loss is not None}
            told[row.arm.tokens] = done
    if len(told) < 2 or base.tokens not in told:
        return None
    try:
        ruler = Ruler.of(told)
    except ValueError as error:
        return Ruled(fault=str(error))
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
    return Ruled(drawing, _worths(shown, found))


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
    return intervals_figure("worth", words, marks, label="worth in training tokens", percent=True)


def _floor(study: Study, found: Conclusion) -> tuple[str, str]:
    """Draws the sources of noise, and the smallest detectable effect."""
    marks = []
    for kind, part in found.noise.items():
        low, high = map(math.sqrt, part.interval)
        marks.append(Mark(f"A/A {kind}", math.sqrt(part.variance), _NOTHING, (low, high), "equivalent"))
    single = [
        ("paired difference", found.judgement.sd),
        ("evaluation", max(found.evaluation.values(), default=math.nan)),
    ]
    marks += [Mark(name, value, _NOTHING, _NOTHING) for name, value in single if math.isfinite(value)]
    first = intervals_figure("noise", "Standard deviation of each source of noise", marks, label="nats per token")
    seeds, delta = study.reach, study.plan.verdict["delta"]
    words = "Smallest effect found four times of five, by seeds"
    second = detectable_figure("detectable", words, found.more, seeds=seeds, delta=delta)
    return first, second


def _costs(study: Study, shown: Sequence[Row]) -> str:
    costs = {row.arm.name: study.costs.get(row.arm.name) for row in shown if row.arm.role != "base"}
    marks = [Mark(name, cost.ratio, _NOTHING, cost.interval) for name, cost in costs.items() if cost]
    words = "Time of a step in isolation as a ratio to the baseline's"
    return intervals_figure("costs", words, marks, label="step time, baseline = 1", zero=1.0)


def _gates(shown: Sequence[Row]) -> Iterator[Gates]:
    """Draws the probes of the first run of every arm with probes."""
    for row in shown:
        log, name = first_log(row), row.arm.name
        if log.probes:
            maps = {patch: _lighter(png) for patch, png in gate_figures(log).items()}
            yield Gates(name, [*log.probes], log.started.seed_init, kept_figures(name, log), maps)


def _lighter(png: bytes) -> bytes:
    """Reduces a heat map to 128 colours, without visible loss: a quarter of its size."""
    from PIL import Image  # matplotlib needs it too

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).quantize(128, method=Image.Quantize.FASTOCTREE).save(out, "png", optimize=True)
    return out.getvalue()
