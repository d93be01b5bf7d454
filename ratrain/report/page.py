"""One self-contained HTML page of a run: no script, no network."""

from __future__ import annotations

import math

import tomli

from ratrain.events import NOT_CAUSAL, Evaluated
from ratrain.report.figures import gate_figures, loss_figure
from ratrain.report.gates import gate_rows
from ratrain.report.html import render
from ratrain.report.pruning import pruned_in_short, pruning_facts, pruning_rows
from ratrain.storage.run_log import RunLog
from ratrain.tasks.compare import described, newest


def facts(log: RunLog) -> list[tuple[str, str]]:
    """Returns the setup and the results of the run, as name and text."""
    start, windows = log.started, log.windows
    rows = [
        ("run", str(log.path)),
        ("variant", f"{start.id}: {start.title}"),
        ("status", log.status + (f", step {windows[-1].step:,}" if windows else "")),
        ("scale", f"{start.scale}, {start.precision} on {start.device}"),
        ("parameters", f"{start.parameters:,}"),
    ]
    if log.evaluated:
        rows += _evaluated(log.evaluated[-1])
    if log.pruning:
        rows.append(("pruned weights", pruned_in_short(log.pruning)))
    if windows:
        rate = sorted(window.tokens_per_second for window in windows)[len(windows) // 2]
        mfu = [window.mfu for window in windows if window.mfu is not None]
        of_peak = f", MFU {100 * sorted(mfu)[len(mfu) // 2]:.0f} % of the measured peak" if mfu else ""
        rows.append(("speed", f"{rate:,.0f} tokens/s, the median window{of_peak}"))
        rows.append(("peak memory", f"{max(window.peak_memory for window in windows) / 2**20:,.0f} MiB"))
        recompiles, skipped = windows[-1].recompiles, sum(window.skipped for window in windows)
        if recompiles or skipped:
            rows.append(("warning", f"{recompiles} recompiles, {skipped} steps skipped"))
    rows += [("warning", text) for text in dict.fromkeys(log.warnings) if NOT_CAUSAL in text]
    rows += [(f"the reference: {name}", text) for name, text in _origin(log)]
    return rows


def _evaluated(last: Evaluated) -> list[tuple[str, str]]:
    """Returns the last validation loss of a text, or that of a recall task with its accuracy, as name and text."""
    if last.accuracy is not None:
        loss = ("validation loss", f"{last.loss:.4f} nats per answer, {last.tokens:,} answers")
        return [loss, ("right answers", f"{100 * last.accuracy:.2f} %")]
    told = "" if last.bits_per_byte is None else f", {last.bits_per_byte:.4f} bits per byte"
    perplexity = math.exp(min(last.loss, 700))
    return [("validation loss", f"{last.loss:.4f} nats per token{told}, perplexity {perplexity:.2f}")]


def _origin(log: RunLog) -> list[tuple[str, str]]:
    """Returns the manifest's `origin` section, the counterpart of the run in the reference, as name and text."""
    try:
        manifest = tomli.loads((log.path / "resolved.toml").read_text())
    except (OSError, ValueError):
        return []
    origin = manifest.get("origin")
    return [(name, str(text)) for name, text in origin.items()] if isinstance(origin, dict) else []


TASKS_HEAD = ("task", "metric", "value", "standard error", "n", "step", "examples", "lm-eval", "digest")


def task_rows(log: RunLog) -> list[tuple[str, ...]]:
    """Returns the scores of the run on downstream tasks under TASKS_HEAD: a row for each metric."""
    return [
        (*described(one, metric), f"{one.step:,}", str(one.fewshot), one.harness, one.digest[:16])
        for one in newest(log.tasks)
        for metric in one.scores
    ]


def page(log: RunLog, figures: dict[str, bytes], missing: str = "") -> str:
    """Builds the report as HTML; `figures` are those of figures_of, `missing` is the reason if there are none."""
    manifest = log.path / "resolved.toml"
    return render(
        "run.html.jinja",
        title=f"{log.started.id} {log.path.name}",
        log=log,
        setup=facts(log),
        figures=figures,
        missing=missing,
        gates=gate_rows(log),
        pruning=pruning_facts(log),
        matrices=pruning_rows(log),
        tasks_head=TASKS_HEAD,
        tasks=task_rows(log),
        manifest=manifest.read_text() if manifest.exists() else None,
    )


def figures_of(log: RunLog) -> dict[str, bytes]:
    """Draws every figure of the page as PNG, by name. Raises UnavailableError without matplotlib."""
    losses = {"loss": loss_figure(log)} if log.windows else {}
    return losses | {f"gates-{patch}": image for patch, image in gate_figures(log).items()}
