"""Trackers, each in its own thread, so that none blocks or fails a run. TensorBoard; the others are in hosted.py."""

from __future__ import annotations

import json
import queue
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from ratrain.events import (
    Emit,
    Evaluated,
    Event,
    Machine,
    Notice,
    Probed,
    Resumed,
    RunEnded,
    RunStarted,
    Sampled,
    Window,
)

_QUEUE = 1000  # events in the queue of a tracker: with one event per window, an hour of training or more
PATIENCE = 10.0  # seconds that the end of a run waits for a tracker
_HEARD = (RunStarted, Resumed, Window, Evaluated, Probed, Machine, Sampled, RunEnded)
_OF_WINDOW = (
    "train/tokens", "train/lr", "train/skipped", "speed/tokens_per_second", "speed/mfu", "speed/mfu_datasheet",
    "machine/peak_memory", "compile/graphs", "compile/recompiles",
)  # fmt: skip


def points(event: Event) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the plottable values of an event: for each of its steps, the step and values by name."""
    if isinstance(event, Window):
        fields = ((name, getattr(event, name.partition("/")[2])) for name in _OF_WINDOW)
        known = {name: value for name, value in fields if value is not None}
        known |= {"train/sparsity": event.sparsity} if event.sparsity else {}
        for left, loss, norm in zip(reversed(range(len(event.losses))), event.losses, event.grad_norms, strict=True):
            yield event.step - left, {"train/loss": loss, "train/grad_norm": norm, **({} if left else known)}
    elif isinstance(event, Evaluated):
        read = {"val/bits_per_byte": event.bits_per_byte, "val/accuracy": event.accuracy}
        yield event.step, {"val/loss": event.loss, **{name: value for name, value in read.items() if value is not None}}
    elif isinstance(event, Probed):
        named = ((f"{patch}/{probe}", rows) for patch, probes in event.values.items() for probe, rows in probes.items())
        yield event.step, {name: fmean(value for row in rows for value in row) for name, rows in named}
    elif isinstance(event, Machine):
        gpu = {f"machine/gpu_{name}": value for name, value in (event.gpu or {}).items()}
        yield event.step, {"machine/cpu_percent": event.cpu_percent, "machine/memory": event.memory, **gpu}


class Tracker:
    """Base class of trackers. All methods but the constructor run in a thread that may fail or hang."""

    name: str
    place = ""  # the run's address or the command to view it, once known

    def __call__(self, event: Event) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Finishes the tracker's run."""

    def abandon(self) -> None:
        """Releases all resources that would outlive the run, after a failure or a timeout. Must not raise."""


class Queued:
    """A sink that queues events for a tracker in another thread, and waits for it only at the end of the run.

    If the queue is full, an event is dropped and counted. An error of the tracker is raised again at the next event or
    in `close`, in the publishing thread; the Fanout reports it and drops the tracker.
    """

    def __init__(self, tracker: Tracker, emit: Emit, *, size: int = _QUEUE, patience: float = PATIENCE):
        self.name, self._tracker, self._emit = tracker.name, tracker, emit
        self._size, self._patience = size, patience
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: the end of the queue
        self._dropped, self._place = 0, ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"ratrain-{self.name}", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        self._tell()
        if not isinstance(event, _HEARD):
            return
        if self._events.qsize() < self._size or isinstance(event, RunEnded):
            self._events.put(event)
            return
        self._dropped += 1
        if self._dropped == 1:
            self._warn("is slow and misses events; events.jsonl has them all")

    def close(self) -> None:
        """Waits up to `patience` seconds for the queue. Raises the tracker's error, or TimeoutError if it is late."""
        self._events.put(None)
        late = True  # also if a second Ctrl-C ends the wait
        try:
            self._thread.join(self._patience)
            late = self._thread.is_alive()
        finally:
            if late:
                leaving = threading.Thread(target=self._tracker.abandon, daemon=True)
                leaving.start()
                leaving.join(min(1.0, self._patience))
        if self._dropped:
            self._warn(f"missed {self._dropped} events; events.jsonl has them all")
        if late:
            raise TimeoutError(f"not done {self._patience:g} s after the run; events.jsonl has what is missing there")
        self._tell()

    def _work(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._tracker(event)
            self._tracker.close()
        except BaseException as error:  # also SystemExit by a library: it must end this thread only
            self._tracker.abandon()
            self._error = error if isinstance(error, Exception) else RuntimeError(repr(error))

    def _tell(self) -> None:
        if self._error is not None:
            raise self._error
        if self._place != self._tracker.place:
            self._place = self._tracker.place
            self._emit(Notice(f"{self.name}: {self._place}"))

    def _warn(self, message: str) -> None:
        self._emit(Notice(f"{self.name} {message}", "warning"))


class TensorBoard(Tracker):
    """Writes event files in `<run>/tensorboard`; a resume purges points of later steps, so that none is repeated."""

    name = "tensorboard"

    def __init__(self):
        self._writer: Any = None
        self._step = 0  # at which the run starts or resumes

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed):
            self._step = event.step
        elif isinstance(event, RunStarted):
            self._open(event)
        elif isinstance(event, Sampled):
            self._write("sample", event.text, event.step)
        for step, values in points(event):
            self._add(values, step)
        if self._writer:
            self._writer.flush()  # so that a killed process leaves all points up to its checkpoints

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self, started: RunStarted) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(started.folder)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=self._step + 1)
        self._write("manifest", (folder / "resolved.toml").read_text(), self._step)
        self._write("run", json.dumps(asdict(started), indent=1), self._step)

    def _add(self, values: dict[str, float], step: int) -> None:
        """Writes all values as one record: one add_scalar per value takes three times as long and holds the GIL."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        drawn = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.file_writer.add_summary(Summary(value=drawn), step)

    def _write(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, textwrap.indent(text, "    "), step)  # as a code block in Markdown
