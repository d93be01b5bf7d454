"""Figures of a ladder: the gain of each arm against compute, and the order of the arms at each rung."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ratrain.ablation.ladder.conclusion import LEVEL, LadderConclusion, Outlook
from ratrain.ablation.ladder.results import RungResult
from ratrain.report.drawing import PAINT, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 25  # of a band


def trend_figure(outlook: Outlook, results: Sequence[RungResult]) -> str:
    """Draws an arm: measured gains with 90 % bars, the trend, its 90 % band for other rungs, and the next rung."""
    words = f"{outlook.arm}: gain in tokens against training compute, {outlook.word}"
    return drawn(f"trend {outlook.arm}", words, 2.3, partial(_trend, outlook=outlook, results=results))


def _trend(axes: Axes, *, outlook: Outlook, results: Sequence[RungResult]) -> None:
    trend, measured = outlook.trend, outlook.trend.measured
    first, last = math.log10(results[0].rung.flops), math.log10(outlook.next.flops)
    at = np.linspace(first, last, _POINTS)
    ahead = [trend.rung(float(x)) for x in at]
    low, high = np.array([mixture.interval(LEVEL) for mixture in ahead]).T
    color = _color(outlook)
    axes.axhline(0, color=PAINT["base"], linewidth=1)
    axes.fill_between(10**at, np.expm1(low), np.expm1(high), color=PAINT["band"], linewidth=0)
    axes.plot(10**at, np.expm1([mixture.mean for mixture in ahead]), color=color, linewidth=1.2)
    gains, shared = measured.gains, measured.shared.diagonal()
    both = zip(measured.seeds, shared, strict=True)
    errors = np.array([seeds.plus(float(variance), math.inf).half_width(LEVEL) for seeds, variance in both])
    sides = np.array([np.expm1(gains) - np.expm1(gains - errors), np.expm1(gains + errors) - np.expm1(gains)])
    axes.errorbar(10**measured.x, np.expm1(gains), yerr=sides, fmt="o", color=color, markersize=4.5, elinewidth=1)
    end = outlook.next.interval
    x, gain = outlook.next.flops, math.expm1(outlook.next.gain)
    axes.plot([x, x], [math.expm1(end[0]), math.expm1(end[1])], color=color, linewidth=1, linestyle=(0, (2, 2)))
    axes.plot([x], [gain], marker="o", markerfacecolor="none", color=color, markersize=5)
    axes.set(ylabel="gain in tokens")
    _over_compute(axes)
    axes.locator_params(axis="y", nbins=5)


def _over_compute(axes: Axes) -> None:
    """Makes the axes those of gains over decades of compute."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale="log", xlabel="training FLOPs of a run of the baseline")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter("{x:.0e}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:+.0%}")


def _color(outlook: Outlook) -> str:
    side = outlook.word.rpartition("turns into ")[2]
    return PAINT["better" if side.startswith("gain") else "worse" if side.startswith("loss") else "inconclusive"]


def ranking_figure(found: LadderConclusion, base: str) -> str:
    """Draws the order of all arms and the baseline at every rung, the best on top; empty for a single arm."""
    if len(found.outlooks) < 2:
        return ""
    places = places_of(found, base)
    words = "Order of the arms with a trend by measured gain at every rung"
    return drawn("rankings", words, 0.8 + 0.19 * len(places), partial(_rankings, found=found, places=places))


def places_of(found: LadderConclusion, base: str) -> dict[str, list[int]]:
    """Returns the place of each arm with a trend at every rung by its measured gain, 1 for the largest.

    The baseline's gain is 0; an arm with the same gain stands below it.
    """
    names = [base, *found.outlooks]
    places: dict[str, list[int]] = {name: [] for name in names}
    for of in found.readings.by_rung:
        gains = {name: (of[name].gain or 0.0) if name in found.outlooks else 0.0 for name in names}
        for place, name in enumerate(sorted(names, key=gains.__getitem__, reverse=True), start=1):
            places[name].append(place)
    return places


def _rankings(axes: Axes, *, found: LadderConclusion, places: Mapping[str, Sequence[int]]) -> None:
    rungs = range(1, len(found.readings.by_rung) + 1)
    for name, of in places.items():
        outlook = found.outlooks.get(name)
        color = _color(outlook) if outlook else PAINT["base"]
        axes.plot(rungs, of, color=color, marker="o", markersize=3.5, linewidth=1.2 if outlook else 2)
    axes.set(ylim=(len(places) + 0.5, 0.5), xlabel="rung", xticks=rungs)
    for side, at in ((axes, 0), (axes.secondary_yaxis("right"), -1)):  # names at both ends, to follow a line from
        names = sorted(places, key=lambda name, at=at: places[name][at])
        side.set_yticks(range(1, len(names) + 1), names, color=PAINT["ink"])
        side.tick_params(axis="y", length=0)
        for spine in side.spines.values():
            spine.set_visible(False)
