"""Figures of a run as PNG, in colours for light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ratrain.errors import UnavailableError
from ratrain.report.gates import shown
from ratrain.run.coordcheck import Coordinates
from ratrain.storage.run_log import RunLog, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#808080"  # readable on white and on black
_WIDTH = 8.0  # inches, as the margins below
_LEFT, _RIGHT = 0.65, 0.85  # margins of a heat map: for the names of layers, for the colour bar
_ABOVE, _BELOW = 0.26, 0.3  # margins of a heat map: for its title, for the steps


def loss_figure(log: RunLog) -> bytes:
    """Draws training and validation losses, the losses of simple baselines, the steps at which mechanisms were
    switched on, the sparsity, and the accuracy of a recall task."""
    figure, axes = _figure(height=4.0)
    steps, losses = log.losses()
    axes.plot(steps, losses, color="#7aa6c2", linewidth=0.8, label="training")
    if log.evaluated:
        steps, losses = [e.step for e in log.evaluated], [e.loss for e in log.evaluated]
        axes.plot(steps, losses, color="#d1495b", marker="o", markersize=3, label="validation")
    for name, loss in log.started.baselines.items():
        axes.axhline(loss, color=_INK, linewidth=0.6, linestyle=":")
        axes.annotate(name, (1, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_INK)
    for event in log.activated:
        if event.step:
            axes.axvline(event.step, color="#3a7d44", linewidth=0.8, linestyle="--", label=f"{event.patch} on")
    recalls = any(event.accuracy is not None for event in log.evaluated)
    axes.set(xlabel="step", ylabel="nats per answer" if recalls else "nats per token")
    _add_sparsity(axes, log)
    if recalls:
        _add_accuracy(axes, log)
    axes.legend(frameon=False, labelcolor=_INK)
    return _png(figure)


def _add_accuracy(axes: Axes, log: RunLog) -> None:
    """Adds the share of right answers, on a separate axis to the right."""
    told = [(event.step, 100 * event.accuracy) for event in log.evaluated if event.accuracy is not None]
    _add_beside(axes, told, label="right answers, %", color="#3a7d44", linestyle="--")


def _add_sparsity(axes: Axes, log: RunLog) -> None:
    """Adds the pruned share of the weights, on a separate axis to the right."""
    told = [(window.step, 100 * window.sparsity) for window in log.windows]
    if any(share for _, share in told):
        _add_beside(axes, told, label="pruned weights, %", color="#8e6c8a", linestyle="-.")


def _add_beside(axes: Axes, told: list[tuple[int, float]], *, label: str, color: str, linestyle: str) -> None:
    """Draws per cents by step on an axis to the right."""
    beside = axes.twinx()
    beside.plot(*zip(*told, strict=True), color=color, linewidth=1.0, linestyle=linestyle)
    beside.set(ylim=(0, 102), ylabel=label)
    beside.tick_params(colors=_INK)
    beside.yaxis.label.set_color(_INK)
    for spine in beside.spines.values():
        spine.set_visible(False)
    axes.plot([], [], color=color, linestyle=linestyle, label=label)


def gate_figures(log: RunLog) -> dict[str, bytes]:
    """Draws a figure per patch with a heat map per probe: a row per layer and head, steps from left to right."""
    return {patch: _png(_heat_maps(probes)) for patch, probes in shown(log).items()}


def prune_figure(rows: list[dict[str, Any]]) -> bytes:
    """Draws the loss over the remaining bytes of KV cache, a line per rule; dense attention is the level line."""
    figure, axes = _figure(height=4.0)
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != "dense"):
        points = sorted((row["key_bytes"] + row["value_bytes"], row["loss"]) for row in rows if row["rule"] == rule)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=rule)
    for row in rows:
        if row["rule"] == "dense":
            axes.axhline(row["loss"], color=_INK, linestyle=":", label="dense")
    axes.set(xlabel="bytes of KV cache per token of a full context", ylabel="validation loss, nats per token")
    axes.legend(frameon=False, labelcolor=_INK)
    return _png(figure)


def coordinates_figure(found: Coordinates) -> bytes:
    """Draws the size of every part over the width or depth: at initialisation, and its change after the last step."""
    figure = _empty(4.0, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharex=True), ("initial", "change"), strict=True):
        _in_ink(axes)
        for part in found.parts:
            axes.plot(found.sizes, getattr(part, name), marker="o", markersize=3, linewidth=1, label=part.name)
        axes.set(xscale="log", yscale="log", xlabel=found.axis)
        axes.set_xticks(found.sizes, [str(size) for size in found.sizes])
        axes.minorticks_off()
        last = f"change after {found.steps} steps"
        axes.set_title("root mean square, initial" if name == "initial" else last, color=_INK, fontsize=9, loc="left")
    figure.axes[-1].legend(frameon=False, labelcolor=_INK, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def sweep_figure(points: Sequence[tuple[str, dict[str, Any], Sequence[float]]], *, base: str) -> bytes:
    """Draws the loss over the numeric grid key with the most values, a line per combination of the other keys, with the
    range of the seeds.

    `points` holds (arm, its grid keys and values, the loss of each seed). Arms without a grid, among them the `base`,
    are level lines.
    """
    figure, axes = _figure(height=4.5)
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
    """Returns the grid key with the most numeric values; None without one."""
    numbers: dict[str, set[float]] = {}
    for _, point, _ in points:
        for key, value in point.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.setdefault(key, set()).add(value)
    return max(numbers, key=lambda key: len(numbers[key]), default=None)


def _heat_maps(probes: dict[str, Series]) -> Figure:
    """Draws heat maps stacked over the same steps; placed by hand, since a constrained layout is too slow."""
    tall = [0.44 + 0.11 * series.values[0].size for series in probes.values()]  # inches
    height = sum(tall) + len(tall) * _ABOVE + _BELOW
    figure, top = _empty(height), height
    edges = [_edges(series.steps) for series in probes.values()]
    reach = min(at[0] for at in edges), max(at[-1] for at in edges)
    for (probe, series), at, inches in zip(probes.items(), edges, tall, strict=True):
        top -= _ABOVE + inches
        place = top / height, inches / height
        axes = figure.add_axes((_LEFT / _WIDTH, place[0], 1 - (_LEFT + _RIGHT) / _WIDTH, place[1]))
        bar = figure.add_axes((1 - (_RIGHT - 0.08) / _WIDTH, place[0], 0.12 / _WIDTH, place[1]))
        _in_ink(axes)
        axes.set_xlim(reach)
        _heat_map(axes, bar, probe, series, at)
    for axes in figure.axes[:-2:2]:  # all but the lowest
        axes.set_xticks([])
    return figure


def _heat_map(axes: Axes, bar: Axes, probe: str, series: Series, edges: np.ndarray) -> None:
    count, layers, heads = series.values.shape
    image = series.values.reshape(count, layers * heads).T
    norm = "log" if probe.startswith("gradient") and (image > 0).any() else "linear"  # gradients span decades
    mesh = axes.pcolormesh(edges, np.arange(layers * heads + 1), image, cmap="viridis", norm=norm, rasterized=True)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(layers) * heads + heads / 2, [f"layer {layer}" for layer in range(layers)])
    for layer in range(1, layers):
        axes.axhline(layer * heads, color="white", linewidth=0.5)
    per = f", {heads} heads a layer" if heads > 1 else ""
    axes.set_title(f"{probe}{per}", color=_INK, fontsize=9, loc="left")
    axes.figure.colorbar(mesh, cax=bar).outline.set_edgecolor(_INK)
    bar.tick_params(which="both", colors=_INK, labelsize=7)
    bar.yaxis.get_offset_text().set(color=_INK, fontsize=7)


def _edges(steps: np.ndarray) -> np.ndarray:
    """Returns the cell edges for these steps: a reading covers the steps since the previous one."""
    first = 2 * steps[0] - steps[1] if len(steps) > 1 else min(0, steps[0] - 1)
    return np.concatenate([[first], steps])


def _figure(*, height: float) -> tuple[Figure, Axes]:
    figure = _empty(height, layout="constrained")
    axes = figure.subplots()
    _in_ink(axes)
    return figure, axes


def require_matplotlib() -> None:
    """Raises UnavailableError without matplotlib."""
    _empty(1.0)


def _empty(height: float, layout: Literal["constrained"] | None = None) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("figures need matplotlib; pip install 'ratrain[plots]'") from error
    return Figure(figsize=(_WIDTH, height), layout=layout)


def _in_ink(axes: Axes) -> None:
    axes.tick_params(colors=_INK, labelsize=8)
    axes.patch.set_alpha(0)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, transparent=True)
    return out.getvalue()
