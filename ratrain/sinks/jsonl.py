"""Writes events.jsonl: every event as one JSON object per line, the only source of reports."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from ratrain.atomic import write_all, write_file
from ratrain.errors import CannotCreateError, DiskError
from ratrain.event_log import encode
from ratrain.events import Branched, Event, PhaseStarted, Resumed, RunStarted


class Jsonl:
    """Appends events to `path`, so that each step is recorded once.

    When a run resumes, events of later steps by an earlier process are deleted; when it starts afresh, events of all
    steps are. A last line truncated by a crash is deleted too. Samples and pruning results of the resumed step are
    deleted as well, because they follow the last checkpoint and are produced again.
    """

    def __init__(self, path: Path):
        self.path, self._start = path, time.monotonic()
        self._resumed = False
        try:
            self._file = self._open()
        except OSError as error:
            raise CannotCreateError(f"{path}: cannot be written: {error.strerror}") from error
        self._rewind(None)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Branched, Resumed)):
            self._rewind(event.step if isinstance(event, Resumed) else 0)
            self._resumed = True
        elif isinstance(event, RunStarted) and not self._resumed:
            self._rewind(0)
        try:
            write_all(self._file, (encode(event, seconds=time.monotonic() - self._start) + "\n").encode())
            if isinstance(event, PhaseStarted) and event.phase == "save":
                os.fsync(self._file)  # the events before a checkpoint must be as durable as the checkpoint
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._file)

    def _rewind(self, step: int | None) -> None:
        """Deletes incomplete lines, and events of steps after `step` (None: of no step)."""
        lines = self.path.read_text(errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _stands(line, step)]
        if kept != lines:
            os.close(self._file)
            write_file(self.path, ["".join(kept).encode()])
            self._file = self._open()


def _stands(line: str, step: int | None) -> bool:
    try:
        event = json.loads(line)
        at = event.get("step")
        if step is not None and event.get("event") in ("Sampled", "PruningEvaluated") and at >= step:
            return False
        return line.endswith("\n") and (step is None or at is None or at <= step)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return False  # not a line of this class


class JsonStream:
    """Prints the same lines to a stream, for `--json`."""

    def __init__(self, stream: TextIO | None = None):  # stdout by default
        self._stream, self._start = sys.stdout if stream is None else stream, time.monotonic()

    def __call__(self, event: Event) -> None:
        print(encode(event, seconds=time.monotonic() - self._start), file=self._stream, flush=True)
