"""Results of the runs of a study, read from their events."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ratrain.ablation.looks import Block
from ratrain.ablation.record import PlannedArm, Study
from ratrain.errors import DataError, MissingError
from ratrain.storage.run_log import RunLog, read_run


@dataclass(frozen=True)
class Reached:
    """The status of one run of an arm; `loss` is the study's metric, None before the first evaluation."""

    init: int
    data: int
    folder: str
    status: str  # not begun, unfinished, preempted, failed, diverged, done
    loss: float | None
    log: RunLog | None
    parts: tuple[float, ...] = ()  # the loss by document or passage; empty if the events lack it

    @property
    def accuracy(self) -> float | None:
        """The share of right answers in the last evaluation of a recall task; None for text."""
        return self.log.evaluated[-1].accuracy if self.log and self.log.evaluated else None

    @property
    def ended(self) -> bool:
        """Whether the run is over: done, diverged or failed."""
        return self.status in ("done", "diverged", "failed")

    @property
    def result(self) -> float | None:
        """The loss of a finished run; NaN if the run diverged, None otherwise."""
        if self.status == "diverged":
            return math.nan
        return self.loss if self.status == "done" else None


@dataclass(frozen=True)
class Row:
    """One arm: the results of its runs, and their differences to the baseline's runs of the same seeds."""

    arm: PlannedArm
    runs: tuple[Reached, ...]
    differences: tuple[float, ...]  # nats per token; of the seeds that both finished
    asked: int | None = None  # runs that the study has asked for, if an arm gets as many as it needs; None: all

    @property
    def losses(self) -> list[float]:
        return [run.loss for run in self.runs if run.status == "done" and run.loss is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def accuracy(self) -> float | None:
        """The mean share of right answers of the finished runs; None for text."""
        told = [run.accuracy for run in self.runs if run.status == "done" and run.accuracy is not None]
        return statistics.fmean(told) if told else None

    @property
    def begun(self) -> bool:
        return any(run.status != "not begun" for run in self.runs)

    @property
    def planned(self) -> int:
        """The number of runs that the study has asked for."""
        return len(self.runs) if self.asked is None else self.asked

    @property
    def status(self) -> str:
        """The count of finished runs, and the counts of other statuses ("3/5, 1 diverged")."""
        others = Counter(run.status for run in self.runs if run.status not in ("done", "not begun"))
        return ", ".join([f"{len(self.losses)}/{self.planned}", *(f"{n} {word}" for word, n in others.items())])


def rows_of(study: Study, block: Block | None = None) -> list[Row]:
    """Returns a row per arm of the current plan, the baseline's first, then a row per tuned arm.

    With seeds as needed the rows hold the runs that the study has asked for, those of the next `block` included. Other
    runs of its arms, which another study may have trained, are left out.
    """
    arms = [*study.now.arms, *study.tuned]
    asked = {arm.name: study.seeds_of(arm.name, block) for arm in arms}
    most = max(asked.values())
    runs = {arm.name: tuple(islice(_reached(study, arm, asked[arm.name]), most)) for arm in arms}
    return [
        _row(arm, runs[_base_of(study, arm)], runs[arm.name], asked[arm.name] if study.plan.first_look else None)
        for arm in arms
    ]


def _base_of(study: Study, arm: PlannedArm) -> str:
    """The name of an arm's reference: the baseline, or the tuned baseline for a tuned arm."""
    base = study.now.base.name
    tuned = [other.name for other in study.tuned if other.of == base]
    return tuned[0] if arm.role == "tuned" and tuned else base


def _reached(study: Study, arm: PlannedArm, asked: int) -> Iterator[Reached]:
    last = study.now.metric["last"]
    for at, ((init, data), folder) in enumerate(zip(arm.seeds, arm.folders, strict=True)):
        log = _log_of(study.out / folder) if at < asked else None
        if log is None:
            yield Reached(init, data, folder, "not begun", None, None)
            continue
        told, parts = [e.loss for e in log.evaluated[-last:]], [e.parts for e in log.evaluated[-last:]]
        whole = len({len(of) for of in parts}) == 1
        means = tuple(statistics.fmean(of) for of in zip(*parts, strict=True)) if whole else ()
        yield Reached(init, data, folder, _status(log), statistics.fmean(told) if told else None, log, means)


def _log_of(folder: Path) -> RunLog | None:
    """Returns the log of a run; None before it has begun, or if it was killed before its first event was written."""
    try:
        return read_run(folder)
    except MissingError:
        return None
    except DataError:
        if b"\n" in (folder / "events.jsonl").read_bytes():
            raise
        return None


def _status(log: RunLog) -> str:
    """The status by the run's events; "failed" if the events end early and state.json records a failure."""
    if log.status != "unfinished":
        return log.status
    try:
        state = json.loads((log.path / "state.json").read_text())
    except (OSError, ValueError):
        return log.status
    return "failed" if state.get("status") == "failed" else log.status


def _row(arm: PlannedArm, base: tuple[Reached, ...], runs: tuple[Reached, ...], asked: int | None) -> Row:
    of = {(run.init, run.data): run for run in base}
    both = [(of[run.init, run.data].result, run.result) for run in runs if (run.init, run.data) in of]
    differences = tuple(r - b for b, r in both if r is not None and b is not None and math.isfinite(r + b))
    return Row(arm, runs, differences, asked)


def windows_of(rows: Sequence[Row]) -> str:
    """Returns the digest of the validation windows, from the first run whose events state it; empty without one."""
    stated = (run.log.fingerprints for row in rows for run in row.runs if run.log and run.log.fingerprints)
    return next((found.windows for found in stated), "")


@dataclass(frozen=True)
class Documents:
    """The sampling units of the evaluation: document or passage, their tokens, and the losses of every run by unit."""

    unit: str
    sizes: tuple[int, ...]
    parts: dict[str, list[tuple[float, ...] | None]]  # by arm, one per seed


def documents_of(rows: Sequence[Row]) -> Documents:
    """Collects the losses by document of finished runs; without any the unit is empty."""
    stated = [run.log.fingerprints for run in rows[0].runs if run.parts and run.log and run.log.fingerprints]
    if not stated or len(stated[0].sizes) < 2:
        return Documents("", (), {})
    parts = {row.arm.name: [run.parts if run.status == "done" else None for run in row.runs] for row in rows}
    return Documents(stated[0].unit, tuple(stated[0].sizes), parts)
