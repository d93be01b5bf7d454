"""events.jsonl: every event, one JSON object a line, the only source of reports."""

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
    """Appends to `path`. What an earlier process wrote about steps after the one that a run resumes at, or about any
    where it starts over, is dropped, so that each step stands there once; a last line torn by a crash goes too. So
    does a sample, which is drawn after the last checkpoint, and again."""

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
                os.fsync(self._file)  # what led to a checkpoint must not be lost where the checkpoint stays
        except OSError as error:
            raise DiskError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._file)

    def _rewind(self, step: int | None) -> None:
        """Keeps whole lines only; of those about steps, the ones up to `step` (None: all)."""
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
        return False  # not a line that was written here


class JsonStream:
    """The same lines on a stream, for `--json`."""

    def __init__(self, stream: TextIO | None = None):  # stdout by default
        self._stream, self._start = sys.stdout if stream is None else stream, time.monotonic()

    def __call__(self, event: Event) -> None:
        print(encode(event, seconds=time.monotonic() - self._start), file=self._stream, flush=True)
