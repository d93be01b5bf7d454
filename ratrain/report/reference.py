"""Runs of the reference, as their metrics files tell them: a table, what is wrong with the numbers, and the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ratrain.legacy.readers.metrics import OldRun
from ratrain.report.drawing import PAINT, SERIES, drawn
from ratrain.report.html import document, figure, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = ("run", "iterations", "val loss", "perplexity", "best", "at", "sparsity", "ms", "hours")
_CURVES = len(SERIES)  # lines that can be told apart


def rows(runs: Sequence[OldRun]) -> list[tuple[str, ...]]:
    """A row of HEAD per run."""
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
    """All of it as one HTML page. Raises UnavailableError without matplotlib."""
    parts = [f"<h1>{escape(title)}</h1>", "<p>Numbers as the reference wrote them; none was measured here.</p>"]
    parts += ["<h2>What they are worth</h2>", "<ul>", *(f"<li>{escape(line)}</li>" for line in caveats), "</ul>"]
    parts += ["<h2>Runs</h2>", table(rows(runs), HEAD)]
    shown = [run for run in runs if len(run.evaluated) > 1]
    for begin in range(0, len(shown), _CURVES):
        some = shown[begin : begin + _CURVES]
        words = "Validation losses over iterations"
        drawing = drawn(f"old-{begin}", words, 3.0, lambda axes, some=some: _draw(axes, some))
        parts.append(figure(drawing, "Validation loss, nats per token, over iterations."))
    return document(title, "".join(parts))


def _draw(axes: Axes, runs: Sequence[OldRun]) -> None:
    for run, color in zip(runs, SERIES, strict=False):
        at, losses = zip(*run.evaluated, strict=True)
        axes.plot(at, losses, color=PAINT[color], linewidth=1.1, label=run.name)
    axes.set_xlabel("iteration")
    axes.set_ylabel("validation loss")
    axes.legend(frameon=False, labelcolor=PAINT["ink"])
