"""Runs, and comparisons of runs, as values for JSON: the numbers of the tables, unrounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ratrain.report.compare import configuration_of, named, not_compared, on_other_windows, peak_memory, windows_of
from ratrain.report.gates import shown
from ratrain.storage.run_log import RunLog


def run_record(log: RunLog) -> dict[str, Any]:
    """Returns identity, progress, losses (nats per token), costs, gates and scores of a run.

    `gates` holds the values [layers, heads] of each probe at its first and its last reading, by patch and probe.
    """
    start, last = log.started, log.windows[-1] if log.windows else None
    facts = ("id", "title", "scale", "device", "precision", "parameters", "flops_per_token", "kv_bytes_per_token")
    return {
        "run": log.path,
        **{name: getattr(start, name) for name in facts},
        "recipe": start.recipe_hash,
        "seeds": {"init": start.seed_init, "data": start.seed_data},
        "status": log.status,
        "step": last.step if last else None,
        "tokens": last.tokens if last else None,
        "training_loss": last.losses[-1] if last and last.losses else None,
        "tokens_per_second": median(window.tokens_per_second for window in log.windows) if last else None,
        "peak_memory": peak_memory(log) if last else None,
        "evaluated": [asdict(event) for event in log.evaluated],
        "windows": windows_of(log) or None,
        "gates": _gates(log),
        "pruning": asdict(log.pruning) if log.pruning else None,
        "tasks": [asdict(scored) for scored in log.tasks],
        "warnings": list(dict.fromkeys(log.warnings)),
    }


def comparison_record(logs: Sequence[RunLog]) -> dict[str, Any]:
    """Returns the runs, each with the difference of its last validation loss from the first run's, in nats per token.

    The difference is None if a run has no loss, or was evaluated on other windows. `keys` are those that differ.
    """
    first, runs = logs[0], []
    for log in logs:
        alike = log.evaluated and first.evaluated and not on_other_windows(first, log)
        runs.append({**run_record(log), "difference": _loss(log) - _loss(first) if alike else None})
    setup = configuration_of(named(logs))
    keys = [{"key": key, "values": dict(zip(setup.runs, values, strict=True))} for key, *values in setup.rows]
    return {"runs": runs, "keys": keys, "warning": not_compared(logs) or None}


def _loss(log: RunLog) -> float:
    return log.evaluated[-1].loss


def _gates(log: RunLog) -> dict[str, dict[str, Any]]:
    return {
        patch: {
            probe: {"first": series.values[0].tolist(), "last": series.values[-1].tolist()}
            for probe, series in probes.items()
        }
        for patch, probes in shown(log).items()
    }
