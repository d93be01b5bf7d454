"""A run as its events.jsonl tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ratrain.errors import DataError, MissingError
from ratrain.storage.folder import RunFolder
from ratrain.storage.listing import run_status

_NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}  # as JSON spells them


@dataclass
class Series:
    """A probe over the run: `values` [n, layers, heads] at `steps` [n]; one value per layer where heads is 1."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class RunLog:
    """What happened, in order of steps."""

    path: Path
    started: dict[str, Any]
    windows: list[dict[str, Any]] = field(default_factory=list)
    evaluated: list[tuple[int, float]] = field(default_factory=list)  # step, nats per token
    parts: list[tuple[float, ...]] = field(default_factory=list)  # of each evaluation, by document or passage
    fingerprints: dict[str, Any] = field(default_factory=dict)  # what it began with; empty: not stated
    attention: str = ""  # what computed it
    warnings: list[str] = field(default_factory=list)
    activated: list[tuple[int, str]] = field(default_factory=list)  # step, patch
    probes: dict[str, dict[str, Series]] = field(default_factory=dict)  # by patch and probe
    pruning: dict[str, Any] = field(default_factory=dict)  # what became of its weights; empty: none were pruned
    sample: str = ""
    status: str = "unfinished"

    def losses(self) -> tuple[list[int], list[float]]:
        """Training loss of every step."""
        pairs = [
            (window["step"] - len(window["losses"]) + 1 + at, loss)
            for window in self.windows
            for at, loss in enumerate(window["losses"])
        ]
        return [step for step, _ in pairs], [loss for _, loss in pairs]


def read_run(path: Path) -> RunLog:
    """The run in folder `path`. Raises MissingError without events, DataError where they do not tell of a run."""
    file = path / "events.jsonl"
    if not file.exists():
        raise MissingError(f"{file}: no such file; the run has not begun")
    try:
        log = _gathered(path, _events(file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file}: holds an event that ratrain did not write: {error!r}") from error
    if log is None:
        raise DataError(f"{file}: tells of no run")
    if log.status == "unfinished" and (told := run_status(RunFolder(path))) in ("failed", "died", "running"):
        log.status = told  # as `ratrain runs` has it
    return log


def _gathered(path: Path, told: Iterator[dict[str, Any]]) -> RunLog | None:
    log, probed = None, []
    for event in told:
        kind = event.get("event")
        if kind == "RunStarted":
            log = log or RunLog(path, event)
            log.started = event  # the newest session's
            log.status = "unfinished"
        elif log is None:
            continue
        elif kind == "Window":
            log.windows.append(event)
        elif kind == "Evaluated":
            log.evaluated.append((event["step"], event["loss"]))
            log.parts.append(tuple(event.get("parts", ())))
        elif kind == "Fingerprints":
            log.fingerprints = event
        elif kind == "AttentionChosen":
            log.attention = event["backend"]
        elif kind == "Notice" and event["level"] == "warning":
            log.warnings.append(event["message"])
        elif kind == "Activated":
            log.activated.append((event["step"], event["patch"]))
        elif kind == "Probed":
            probed.append(event)
        elif kind == "PruningEvaluated":
            log.pruning = event
        elif kind == "Sampled":
            log.sample = event["text"]
        elif kind == "RunEnded":
            log.status = event["status"]
    if log is not None:
        log.probes = _series(probed)
    return log


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last may still be in the writing."""
    for line in file.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield {name: _number(value) for name, value in event.items()}


def _number(value: Any) -> Any:
    """Names of numbers as numbers, also within lists."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _series(probed: list[dict[str, Any]]) -> dict[str, dict[str, Series]]:
    """Per patch and probe, what each event holds of it; a layer without the patch is nan."""
    rows: dict[tuple[str, str], list[tuple[int, list[list[float]]]]] = {}
    for event in probed:
        for patch, probes in event["values"].items():
            for probe, layers in probes.items():
                rows.setdefault((patch, probe), []).append((event["step"], _number(layers)))
    found: dict[str, dict[str, Series]] = {}
    for (patch, probe), told in rows.items():
        shape = len(told), len(told[0][1]), max(len(row) for _, layers in told for row in layers)
        values = np.full(shape, np.nan)
        for at, (_, layers) in enumerate(told):
            for layer, row in enumerate(layers):
                values[at, layer, : len(row)] = row
        found.setdefault(patch, {})[probe] = Series(np.array([step for step, _ in told]), values)
    return found
