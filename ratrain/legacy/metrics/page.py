"""Report of reference runs from their metrics files: a table, the caveats on the numbers, and loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ratrain.legacy.metrics.read import OldRun
from ratrain.report.drawing import PAINT, SERIES, drawn
from ratrain.report.html import WIDE_STYLE, document, figure, grid, sections

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
    """Builds the whole report as one HTML page. Raises UnavailableError without matplotlib."""
    lead = "<p class=lead>Numbers as the reference wrote them; none was measured here.</p>"
    items = "".join(f"<li>{escape(line)}</li>" for line in caveats)
    worth = f'<aside class="warnings" role="note"><h2>What they are worth</h2><ul>{items}</ul></aside>'
    shown = [run for run in runs if len(run.evaluated) > 1]
    figures = [_figure(shown[begin : begin + _CURVES], begin) for begin in range(0, len(shown), _CURVES)]
    parts = [
        ("runs", "Runs", grid(HEAD, rows(runs), spare=HEAD[2:])),
        ("curves", "Curves", f'<div class="pair">{"".join(figures)}</div>' if figures else ""),
    ]
    return document(title, f"<h1>{escape(title)}</h1>{lead}{worth}{sections(parts)}", WIDE_STYLE)


def _figure(runs: Sequence[OldRun], at: int) -> str:
    drawing = drawn(f"old-{at}", "Validation losses over iterations", 3.0, lambda axes: _draw(axes, runs))
    return figure(drawing, "Validation loss, nats per token, over iterations.")


def _draw(axes: Axes, runs: Sequence[OldRun]) -> None:
    for run, color in zip(runs, SERIES, strict=False):
        at, losses = zip(*run.evaluated, strict=True)
        axes.plot(at, losses, color=PAINT[color], linewidth=1.1, label=run.name)
    axes.set_xlabel("iteration")
    axes.set_ylabel("validation loss")
    axes.legend(frameon=False, labelcolor=PAINT["ink"])
