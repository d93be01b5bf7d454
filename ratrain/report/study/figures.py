"""Figures of a study and of compared runs; the same events give the same bytes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ratrain.report.curves import Curve
from ratrain.report.drawing import PAINT, SERIES, drawn
from ratrain.storage.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 20  # letters of a label on a line
_MARKERS = {"better": "v", "worse": "^", "equivalent": "D", "inconclusive": "o"}


@dataclass(frozen=True)
class Mark:
    """A number with two intervals; the outer one is at the level of the verdict."""

    label: str
    value: float
    inner: tuple[float, float]
    outer: tuple[float, float]
    word: str = "inconclusive"


def intervals_figure(
    name: str, words: str, marks: Sequence[Mark], *, label: str, band: float | None = None, zero: float = 0.0,
    percent: bool = False,
) -> str:  # fmt: skip
    """Draws a row per mark: a dot, the inner interval thick, the outer one thin.

    `zero` is the baseline's line. `band` is the half-width of the shaded equivalence region around it.
    """
    if not marks:
        return ""
    lines = sum(max(1, len(wrapped(mark.label).splitlines())) for mark in marks)
    draw = partial(_intervals, marks=marks, label=label, band=band, zero=zero, percent=percent)
    return drawn(name, words, 0.75 + 0.11 * len(marks) + 0.16 * lines, draw)


def _intervals(
    axes: Axes, *, marks: Sequence[Mark], label: str, band: float | None, zero: float, percent: bool
) -> None:
    low, high = _limits(marks, band or 0.0, zero)
    if band:
        axes.axvspan(zero - band, zero + band, color=PAINT["band"], linewidth=0)
    axes.axvline(zero, color=PAINT["base"], linewidth=1)
    for at, mark in enumerate(marks):
        color = PAINT[mark.word]
        for (left, right), thick in ((mark.outer, 1.1), (mark.inner, 3.6)):
            if not (math.isnan(left) or math.isnan(right)):
                axes.plot([max(left, low), min(right, high)], [at, at], color=color, linewidth=thick,
                          solid_capstyle="butt")  # fmt: skip
        if math.isfinite(mark.value):
            inside = low <= mark.value <= high
            x, marker = min(max(mark.value, low), high), _MARKERS[mark.word]
            axes.plot([x], [at], marker=marker if inside else ">" if mark.value > high else "<", color=color,
                      markersize=6, markeredgewidth=1, linestyle="none", clip_on=False)  # fmt: skip
            if not inside:
                axes.text(x, at - 0.18, f"{mark.value:+.2f} ", color=color, ha="right" if mark.value > high else "left",
                          va="bottom", fontsize=8)  # fmt: skip
        elif math.isnan(mark.outer[0]):
            axes.text(high, at, "beyond the curve ", color=PAINT["quiet"], ha="right", va="center", fontsize=8)
    axes.set_yticks(range(len(marks)), [wrapped(mark.label) for mark in marks])
    axes.tick_params(axis="y", length=0, labelcolor=PAINT["ink"])
    axes.set(xlim=(low, high), ylim=(len(marks) - 0.4, -0.6), xlabel=label)
    axes.xaxis.set_major_formatter("{x:+.0%}" if percent else "{x:g}")
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)


def _limits(marks: Sequence[Mark], band: float, zero: float) -> tuple[float, float]:
    """Returns axis limits for nearly all marks; an outlier must not shrink the other intervals to points."""
    ends = [[x for x in (mark.value, *mark.inner, *mark.outer) if math.isfinite(x)] for mark in marks]
    reach = sorted(max(abs(x - zero) for x in of) for of in ends if of)
    most = min(reach[-1], 5 * reach[len(reach) // 2]) if reach else 1.0
    known = [min(max(x, zero - most), zero + most) for of in ends for x in of]
    low, high = min([*known, zero - 1.15 * band]), max([*known, zero + 1.15 * band])
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def curves_figure(name: str, words: str, curves: Mapping[str, Curve], *, base: str, label: str) -> str:
    """Draws a line per curve with the range of its seeds, the `base` on top."""
    draw = partial(_curves, curves=curves, base=base, label=label)
    return drawn(name, words, 2.9 + 0.17 * math.ceil(len(curves) / 2), draw) if curves else ""


def _curves(axes: Axes, *, curves: Mapping[str, Curve], base: str, label: str) -> None:
    others = [name for name in curves if name != base]
    for at, name in enumerate(sorted(curves, key=lambda name: name == base)):
        curve, emphasis = curves[name], name == base
        color = PAINT["base" if emphasis else SERIES[at % len(SERIES)]]
        style = ("-", "--", "-.", ":")[at // len(SERIES) % 4]
        axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.14, linewidth=0)
        axes.plot(curve.steps, curve.mean, color=color, linewidth=2.2 if emphasis else 1.3, linestyle=style, label=name)
    last = max(curve.steps[-1] for curve in curves.values())
    late = [(c.low[c.steps >= 0.08 * last], c.high[c.steps >= 0.08 * last]) for c in curves.values()]
    known = np.concatenate([np.concatenate(pair) for pair in late])
    if known.size and (span := float(np.ptp(known))) > 0:  # the initial fall from chance would flatten the rest
        axes.set_ylim(known.min() - 0.05 * span, known.max() + 0.05 * span)
    axes.set(xlabel="step", ylabel=label)
    axes.figure.legend(loc="outside lower left", ncols=2 if len(others) else 1, frameon=False,
                       labelcolor=PAINT["ink"], fontsize=8.5)  # fmt: skip


def difference_figure(name: str, words: str, curve: Curve, *, word: str, reach: float, last: float) -> str:
    """Draws a small figure of one arm minus the baseline, with y from -reach to reach and x up to the step `last`."""
    draw = partial(_difference, curve=curve, word=word, reach=reach, last=last)
    return drawn(name, words, 1.25, draw, width=1.85, size=7.5)


def _difference(axes: Axes, *, curve: Curve, word: str, reach: float, last: float) -> None:
    axes.axhline(0, color=PAINT["base"], linewidth=0.8)
    axes.fill_between(curve.steps, curve.low, curve.high, color=PAINT[word], alpha=0.22, linewidth=0)
    axes.plot(curve.steps, curve.mean, color=PAINT[word], linewidth=1.3, markersize=2.5,
              marker="o" if len(curve.steps) <= 12 else "")  # fmt: skip
    axes.set(ylim=(-reach, reach), xlim=(0, last))
    axes.locator_params(axis="x", nbins=2)
    axes.locator_params(axis="y", nbins=3)


def ruler_figure(
    name: str, words: str, *, curve: tuple[np.ndarray, np.ndarray], points: Sequence[tuple[float, float]],
    arms: Sequence[tuple[str, float, float, str]],
) -> str:  # fmt: skip
    """Draws the baseline's losses `points` over tokens, the `curve` through them, and `arms` as (name, tokens, loss,
    verdict)."""
    return drawn(name, words, 3.1, partial(_ruler, curve=curve, points=points, arms=arms))


def _ruler(
    axes: Axes, *, curve: tuple[np.ndarray, np.ndarray], points: Sequence[tuple[float, float]],
    arms: Sequence[tuple[str, float, float, str]],
) -> None:  # fmt: skip
    axes.plot(*curve, color=PAINT["base"], linewidth=1.6)
    axes.plot(*zip(*points, strict=True), color=PAINT["base"], marker="o", markersize=3, linestyle="none", alpha=0.55)
    span, taken = float(np.ptp([loss for _, loss in points])), math.inf
    for at, (name, tokens, loss, word) in enumerate(sorted(arms, key=lambda arm: -arm[2])):
        axes.plot([tokens], [loss], marker=_MARKERS[word], color=PAINT[word], markersize=6.5, linestyle="none")
        if len(arms) <= 8 and taken - loss > 0.06 * span:  # overlapping names would be unreadable
            offset, side = (7, "left") if at % 2 else (-7, "right")
            axes.annotate(wrapped(name), (tokens, loss), (offset, 0), textcoords="offset points", ha=side, va="center",
                          color=PAINT[word], fontsize=8)  # fmt: skip
            taken = loss
    axes.set_xscale("log")
    budgets = sorted({tokens for tokens, _ in points})
    axes.set_xticks(budgets, [_short(tokens) for tokens in budgets])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training tokens", ylabel="validation loss")


def _short(number: float) -> str:
    """Formats a count in at most three digits: 64 k, 1.5 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def detectable_figure(name: str, words: str, more: Mapping[int, float], *, seeds: int, delta: float | None) -> str:
    """Draws the smallest detectable effect over the number of seeds."""
    return drawn(name, words, 2.4, partial(_detectable, more=more, seeds=seeds, delta=delta)) if more else ""


def _detectable(axes: Axes, *, more: Mapping[int, float], seeds: int, delta: float | None) -> None:
    axes.plot(list(more), list(more.values()), color=PAINT["ink"], marker="o", markersize=3.5, linewidth=1.2)
    if seeds in more:
        axes.plot([seeds], [more[seeds]], marker="o", markersize=9, color=PAINT["s1"], markerfacecolor="none",
                  markeredgewidth=1.8, linestyle="none")  # fmt: skip
        axes.annotate("as planned", (seeds, more[seeds]), (8, 5), textcoords="offset points", color=PAINT["s1"])
    if delta:
        axes.axhline(delta, color=PAINT["quiet"], linewidth=1, linestyle="--")
        axes.annotate("delta", (1, delta), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      color=PAINT["quiet"])  # fmt: skip
    axes.set(xlabel="seeds", ylabel="smallest effect found", ylim=(0, None))


def kept_figures(name: str, log: RunLog) -> list[str]:
    """Draws each probe named "kept...", a kept share: its mean over layers and heads with the range over them."""
    found = []
    for patch, probes in log.probes.items():
        for probe, series in probes.items():
            flat = series.values.reshape(len(series.steps), -1)
            flat = flat[:, np.isfinite(flat).all(0)]
            if probe.startswith("kept") and flat.size:
                curve = Curve(series.steps, flat.mean(1), flat.min(1), flat.max(1), flat.shape[1])
                draw = partial(_kept, curve=curve, label=probe)
                found.append(drawn(f"{name} {patch} {probe}", f"{probe} of {patch} over steps", 2.0, draw))
    return found


def _kept(axes: Axes, *, curve: Curve, label: str) -> None:
    axes.fill_between(curve.steps, curve.low, curve.high, color=PAINT["s1"], alpha=0.18, linewidth=0)
    axes.plot(curve.steps, curve.mean, color=PAINT["s1"], linewidth=1.6, marker="o" if len(curve.steps) == 1 else "")
    axes.set(xlabel="step", ylabel=label, ylim=(0, max(1.0, float(curve.high.max())) * 1.02))


def wrapped(label: str) -> str:
    """Breaks a label into at most three lines."""
    words = [word if len(word) <= _LINE else word.replace("_", "_ ", 1) for word in label.split()]
    lines = textwrap.wrap(" ".join(words), _LINE) or [""]  # a name too long for a line breaks behind an underscore
    return "\n".join(lines[:3])
