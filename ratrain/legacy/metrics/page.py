"""Report of reference runs from their metrics files: a table, the caveats on the numbers, and loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.errors import UnavailableError
from ratrain.legacy.metrics.read import OldRun
from ratrain.report.drawing import PAINT, SERIES, drawn
from ratrain.report.html import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = ("run", "iterations", "val loss", "perplexity", "best", "at", "sparsity", "ms", "hours")
_CURVES = len(SERIES)  # number of distinguishable lines per figure


def rows(runs: Sequence[OldRun]) -> list[tuple[str, ...]]:
    """Returns a row under HEAD per run."""
    return [_row(run) for run in runs]


def _row(run: OldRun) -> tuple[str, ...]:
    if run.failed:
        return (run.name, "failed", *[""] * (len(HEAD) - 3), run.failed)
    told = [(at, loss) for at, loss in run.evaluated if math.isfinite(loss)]
    at, best = min(told, key=lambda pair: pair[1], default=(0, math.nan))
    last = run.evaluated[-1][1] if run.evaluated else math.nan
    losses = (f"{last:.4f}", f"{math.exp(min(last, 700)):.2f}", f"{best:.4f}", f"{at:,.0f}") if told else ("",) * 4
    return (
        run.name,
        f"{run.iterations:,}",
        *losses,
        f"{run.sparsity:.1%}" if run.sparsity else "",
        f"{run.milliseconds:,.1f}" if run.milliseconds is not None else "",
        f"{run.seconds / 3600:.2f}" if run.seconds is not None else "",
    )


def page(runs: Sequence[OldRun], caveats: Sequence[str], title: str) -> str:
    """Builds the whole report as one HTML page; without matplotlib it says so in place of the curves."""
    shown, drawings, missing = [run for run in runs if len(run.evaluated) > 1], [], ""
    try:
        drawings = [_drawing(shown[begin : begin + _CURVES], begin) for begin in range(0, len(shown), _CURVES)]
    except UnavailableError as error:
        missing = str(error)
    return render(
        "metrics.html.jinja",
        folder=Path(__file__).parent / "templates",
        title=title,
        caveats=caveats,
        head=HEAD,
        rows=rows(runs),
        drawings=drawings,
        missing=missing,
    )


def _drawing(runs: Sequence[OldRun], at: int) -> str:
    return drawn(f"old-{at}", "Validation losses over iterations", 3.0, lambda axes: _draw(axes, runs))


def _draw(axes: Axes, runs: Sequence[OldRun]) -> None:
    for run, color in zip(runs, SERIES, strict=False):
        at, losses = zip(*run.evaluated, strict=True)
        axes.plot(at, losses, color=PAINT[color], linewidth=1.1, label=run.name)
    axes.set_xlabel("iteration")
    axes.set_ylabel("validation loss")
    axes.legend(frameon=False, labelcolor=PAINT["ink"])
