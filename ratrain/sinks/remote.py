"""A tracker in a process of its own, so that prints, hooks and child processes of its library end with it.

The trainer writes events to the process as lines of events.jsonl and reads an answer for each. The process ignores
signals and ends when its input does, so it also finishes the tracker's run if the trainer is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from ratrain.config.schema import LogSection
from ratrain.event_log import encode
from ratrain.events import Event
from ratrain.sinks.hosted import Trackio, WandB
from ratrain.sinks.tracker import Tracker

_TRACKERS = {tracker.name: tracker for tracker in (WandB, Trackio)}


class Remote(Tracker):
    """Starts the process at the first event; an error in it is raised here, with its type's name and message."""

    def __init__(self, name: str, log: LogSection):
        self.name, self._log = name, log
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, event: Event) -> None:
        self._process = process = self._process or self._started()
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer tells why
            process.stdin.write(f"{encode(event, seconds=0.0)}\n")
            process.stdin.flush()
        self._answer(process)

    def close(self) -> None:
        if process := self._process:
            assert process.stdin and process.stdout
            process.stdin.close()
            self._answer(process)
            process.wait()
            process.stdout.close()

    def abandon(self) -> None:
        if process := self._process:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the library started
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe
                    pipe.close()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, self.name, self._log.model_dump_json()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,  # Ctrl-C stops the trainer, which then ends the tracker's run
        )  # fmt: skip

    def _answer(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        line = process.stdout.readline()
        answer: dict[str, str] = json.loads(line) if line else {"type": "EOFError", "message": "its process ended"}
        if "type" in answer:
            raise type(answer["type"], (RuntimeError,), {})(answer["message"])
        self.place = answer["place"]


def main(name: str, log: str) -> int:
    """Serves one tracker; returns the exit code of the process."""
    answers = os.fdopen(os.dup(1), "w")  # libraries print to stdout
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        tracker: Tracker = _TRACKERS[name](LogSection.model_validate_json(log))
        for line in sys.stdin:
            if event := Event.from_record(json.loads(line)):
                tracker(event)
            answer(place=tracker.place)
        tracker.close()
        answer(place=tracker.place)
        return 0
    except BaseException as error:
        with contextlib.suppress(BrokenPipeError):
            answer(type=type(error).__name__, message=str(error))
        return 1


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(main(*sys.argv[1:]))
