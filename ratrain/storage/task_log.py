"""Scores of a run on downstream tasks, in its tasks.jsonl: one event a line, the newest of each kind.

A file beside events.jsonl, since the process that trains owns that one and rewinds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ratrain.atomic import write_file
from ratrain.event_log import encode, read_events, records
from ratrain.events import TaskScored
from ratrain.lock import lock
from ratrain.storage.folder import RunFolder, listed, step_of

_FILE = "tasks.jsonl"
_KEY = ("weights", "task", "digest")


def read_scores(run: Path) -> list[TaskScored]:
    """Returns the scores of a run, oldest first. Raises DataError for a line that ratrain did not write."""
    file = run / _FILE
    return [event for event in read_events(file) if isinstance(event, TaskScored)] if file.exists() else []


def add_score(run: Path, scored: TaskScored, *, seconds: float) -> None:
    """Adds a score that took so long; an earlier one of the same weights, task, documents and requests is replaced.

    Several processes may add to one run, and a kill leaves the file whole. Raises OSError, CannotCreateError or
    DiskError.
    """
    held = lock(run, wait=None)
    try:
        file = run / _FILE
        known = records(file.read_text(errors="replace")) if file.exists() else ()
        key = [getattr(scored, name) for name in _KEY]
        kept = [json.dumps(record) for record in known if [record.get(name) for name in _KEY] != key]
        write_file(file, ["\n".join([*kept, encode(scored, seconds=seconds), ""]).encode()])
    finally:
        os.close(held)


def weights_of(run: Path, step: int | None = None) -> tuple[int, str] | None:
    """Returns the step and the SHA-256 of a checkpoint's weights, by default the newest's; None without one.

    The weights of a divided model are in several files, and their digest is that of the list of digests.
    """
    for path in listed(RunFolder(run).checkpoints):
        if step is not None and step_of(path) != step:
            continue
        lines = (path / "SHA256SUMS").read_text().splitlines()
        files = [line for line in lines if line.partition("  ")[2].startswith("model")]
        whole = files[0].partition(" ")[0] if len(files) == 1 else hashlib.sha256("\n".join(files).encode()).hexdigest()
        return step_of(path), whole
    return None
