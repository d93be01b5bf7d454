"""Figures of a run as PNG; drawn for light and dark pages alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ratrain.errors import UnavailableError
from ratrain.report.gates import shown
from ratrain.report.log import RunLog, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#808080"  # readable on white and on black
_WIDTH = 8.0  # inches


def loss_figure(log: RunLog) -> bytes:
    """Training loss of every step, validation losses, what simple models reach, where mechanisms were switched on."""
    figure, (axes,) = _figure(1, height=4.0)
    steps, losses = log.losses()
    axes.plot(steps, losses, color="#7aa6c2", linewidth=0.8, label="training")
    if log.evaluated:
        axes.plot(*zip(*log.evaluated, strict=True), color="#d1495b", marker="o", markersize=3, label="validation")
    for name, loss in log.started["baselines"].items():
        axes.axhline(loss, color=_INK, linewidth=0.6, linestyle=":")
        axes.annotate(name, (1, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_INK)
    for step, patch in log.activated:
        if step:
            axes.axvline(step, color="#3a7d44", linewidth=0.8, linestyle="--", label=f"{patch} on")
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend(frameon=False, labelcolor=_INK)
    return _png(figure)


def gate_figures(log: RunLog) -> dict[str, bytes]:
    """Of each patch a heat map per probe: a row per layer and head, steps from left to right."""
    figures = {}
    for patch, probes in shown(log).items():
        rows = [series.values.shape[1] * series.values.shape[2] for series in probes.values()]
        figure, panels = _figure(len(probes), height=sum(0.9 + 0.11 * n for n in rows), ratios=[6 + n for n in rows])
        for axes, (probe, series) in zip(panels, probes.items(), strict=True):
            _heat_map(axes, probe, series)
        figures[patch] = _png(figure)
    return figures


def prune_figure(rows: list[dict[str, Any]]) -> bytes:
    """Loss over the bytes of cache that are left, a line per rule; dense attention is the level line."""
    figure, (axes,) = _figure(1, height=4.0)
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != "dense"):
        points = sorted((row["key_bytes"] + row["value_bytes"], row["loss"]) for row in rows if row["rule"] == rule)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=rule)
    for row in rows:
        if row["rule"] == "dense":
            axes.axhline(row["loss"], color=_INK, linestyle=":", label="dense")
    axes.set(xlabel="bytes of KV cache per token of a full context", ylabel="validation loss, nats per token")
    axes.legend(frameon=False, labelcolor=_INK)
    return _png(figure)


def sweep_figure(points: Sequence[tuple[str, dict[str, Any], Sequence[float]]], *, base: str) -> bytes:
    """Loss over the number that a grid varies most, a line per other value of it with the range of the seeds.

    `points` holds (arm, the keys of its grid and their values here, the loss of each seed); arms without a grid, the
    `base` among them, are level lines.
    """
    figure, (axes,) = _figure(1, height=4.5)
    key = _swept(points)
    lines: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for arm, point, losses in points:
        if key in point:
            others = (str(value) for name, value in point.items() if name != key)
            lines.setdefault(" ".join((arm, *others)), []).append((float(point[key]), losses))
        elif not point:
            axes.axhline(float(np.mean(losses)), color=_INK, linestyle=":" if arm == base else "--", label=arm)
    for label, line in lines.items():
        at, told = zip(*sorted(line), strict=True)
        means = np.array([np.mean(losses) for losses in told])
        reach = [means - [min(losses) for losses in told], [max(losses) for losses in told] - means]
        axes.errorbar(at, means, reach, marker="o", markersize=4, capsize=3, linewidth=1, label=label)
    axes.set(xlabel=key or "", ylabel="validation loss, nats per token")
    axes.legend(frameon=False, labelcolor=_INK)
    return _png(figure)


def _swept(points: Sequence[tuple[str, dict[str, Any], Sequence[float]]]) -> str | None:
    """The key of a grid that takes the most numbers."""
    numbers: dict[str, set[float]] = {}
    for _, point, _ in points:
        for key, value in point.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.setdefault(key, set()).add(value)
    return max(numbers, key=lambda key: len(numbers[key]), default=None)


def _heat_map(axes: Axes, probe: str, series: Series) -> None:
    count, layers, heads = series.values.shape
    image = series.values.reshape(count, layers * heads).T
    edges = np.concatenate([[2 * series.steps[0] - series.steps[1]] if count > 1 else [0], series.steps])
    norm = "log" if probe.startswith("gradient") and (image > 0).any() else "linear"  # gradients span decades
    mesh = axes.pcolormesh(edges, np.arange(layers * heads + 1), image, cmap="viridis", norm=norm, rasterized=True)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(layers) * heads + heads / 2, [f"layer {layer}" for layer in range(layers)])
    for layer in range(1, layers):
        axes.axhline(layer * heads, color="white", linewidth=0.5)
    per = f", {heads} heads a layer" if heads > 1 else ""
    axes.set_title(f"{probe}{per}", color=_INK, fontsize=9, loc="left")
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.ax.tick_params(colors=_INK, labelsize=7)


def _figure(panels: int, *, height: float, ratios: list[int] | None = None) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("figures need matplotlib; pip install 'ratrain[plots]'") from error
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False, height_ratios=ratios)[:, 0]
    for one in axes:
        one.tick_params(colors=_INK, labelsize=8)
        one.patch.set_alpha(0)
        one.xaxis.label.set_color(_INK)
        one.yaxis.label.set_color(_INK)
        for spine in one.spines.values():
            spine.set_color(_INK)
    return figure, list(axes)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, transparent=True)
    return out.getvalue()
