"""A run as read from its events.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ratrain.errors import DataError, MissingError
from ratrain.event_log import read_events
from ratrain.events import (
    Activated,
    AttentionChosen,
    Evaluated,
    Event,
    Fingerprints,
    Notice,
    Probed,
    PruningEvaluated,
    RunEnded,
    RunStarted,
    Sampled,
    TaskScored,
    Window,
)
from ratrain.storage.folder import RunFolder
from ratrain.storage.listing import run_status
from ratrain.storage.task_log import read_scores


@dataclass
class Series:
    """A probe over the run: `values` [n, layers, heads] at `steps` [n]; heads is 1 for one value per layer."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class RunLog:
    """The events of a run, sorted by kind, each kind in order of steps."""

    path: Path
    started: RunStarted  # of the newest session
    windows: list[Window] = field(default_factory=list)
    evaluated: list[Evaluated] = field(default_factory=list)
    fingerprints: Fingerprints | None = None
    attention: str = ""  # the backend
    warnings: list[str] = field(default_factory=list)
    activated: list[Activated] = field(default_factory=list)
    probes: dict[str, dict[str, Series]] = field(default_factory=dict)  # by patch and probe
    pruning: PruningEvaluated | None = None  # None: no weights were pruned, or the run is not done
    sample: str = ""
    tasks: list[TaskScored] = field(default_factory=list)  # of tasks.jsonl
    status: str = "unfinished"

    def losses(self) -> tuple[list[int], list[float]]:
        """Returns steps and training losses of all windows."""
        return steps_of(self.windows), [loss for window in self.windows for loss in window.losses]


def steps_of(windows: Iterable[Window]) -> list[int]:
    """Returns the step of each loss in these windows."""
    return [window.step - len(window.losses) + 1 + at for window in windows for at in range(len(window.losses))]


def read_run(path: Path) -> RunLog:
    """Reads the run in folder `path`, with its scores on tasks.

    Raises MissingError without events.jsonl, DataError if it has no RunStarted.
    """
    file = path / "events.jsonl"
    if not file.exists():
        raise MissingError(f"{file}: no such file; the run has not begun")
    log = _sorted(path, read_events(file))
    if log is None:
        raise DataError(f"{file}: holds no run")
    log.tasks = read_scores(path)
    if log.status == "unfinished" and (status := run_status(RunFolder(path))) in ("failed", "died", "running"):
        log.status = status  # as in `ratrain runs`
    return log


def _sorted(path: Path, found: Iterable[Event]) -> RunLog | None:
    log, probed = None, []
    for event in found:
        match event:
            case RunStarted():
                log = log or RunLog(path, event)
                log.started, log.status = event, "unfinished"
            case _ if log is None:
                pass
            case Window():
                log.windows.append(event)
            case Evaluated():
                log.evaluated.append(event)
            case Fingerprints():
                log.fingerprints = event
            case AttentionChosen():
                log.attention = event.backend
            case Notice(message, "warning"):
                log.warnings.append(message)
            case Activated():
                log.activated.append(event)
            case Probed():
                probed.append(event)
            case PruningEvaluated():
                log.pruning = event
            case Sampled():
                log.sample = event.text
            case RunEnded():
                log.status = event.status
    if log is not None:
        log.probes = _series(probed)
    return log


def _series(probed: Sequence[Probed]) -> dict[str, dict[str, Series]]:
    """Collects the values of each probe over all events, by patch and probe; a layer without the patch is nan."""
    rows: dict[tuple[str, str], list[tuple[int, list[list[float]]]]] = {}
    for event in probed:
        for patch, probes in event.values.items():
            for probe, layers in probes.items():
                rows.setdefault((patch, probe), []).append((event.step, layers))
    found: dict[str, dict[str, Series]] = {}
    for (patch, probe), told in rows.items():
        shape = len(told), len(told[0][1]), max(len(row) for _, layers in told for row in layers)
        values = np.full(shape, np.nan)
        for at, (_, layers) in enumerate(told):
            for layer, row in enumerate(layers):
                values[at, layer, : len(row)] = row
        found.setdefault(patch, {})[probe] = Series(np.array([step for step, _ in told]), values)
    return found
