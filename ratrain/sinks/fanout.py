"""Passes each event to many sinks; an optional sink that fails is dropped and reported, and the run continues."""

from __future__ import annotations

import contextlib

from ratrain.events import Emit, Event, Notice


class Fanout:
    """Calls every sink with every event, in order. An essential sink saves results, so its failure ends the run."""

    def __init__(self):
        self._essential: list[Emit] = []
        self._optional: list[Emit] = []

    def add(self, sink: Emit, *, essential: bool = False) -> None:
        (self._essential if essential else self._optional).append(sink)

    def __call__(self, event: Event) -> None:
        for sink in self._essential:
            sink(event)
        for sink in list(self._optional):
            if sink not in self._optional:
                continue  # dropped meanwhile: it failed on the notice of another sink's failure
            try:
                sink(event)
            except Exception as error:
                self._optional.remove(sink)
                self._report(sink, error)

    def close(self) -> None:
        """Closes every sink, the last added first, so that earlier ones still receive notices of failures."""
        with contextlib.ExitStack() as files:
            for sink in self._essential:
                files.callback(_close, sink)
            while self._optional:
                sink = self._optional.pop()
                try:
                    _close(sink)
                except Exception as error:
                    self._report(sink, error)

    def _report(self, sink: Emit, error: Exception) -> None:
        name = getattr(sink, "name", type(sink).__name__)
        what = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        self(Notice(f"{name} failed and is dropped: {what}", "warning"))


def _close(sink: Emit) -> None:
    close = getattr(sink, "close", None)
    if close:
        close()
