"""One emit for many sinks: one that fails is dropped and reported, the run goes on."""

from __future__ import annotations

import contextlib

from ratrain.events import Emit, Event, Notice


class Fanout:
    """Calls every sink with every event, in order. An essential sink may fail the run: to lose it is to lose work."""

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
                continue  # dropped meanwhile: it failed when it heard of another's failure
            try:
                sink(event)
            except Exception as error:
                self._optional.remove(sink)
                self._report(sink, error)

    def close(self) -> None:
        """Closes every sink, the last added first: those before it still hear what goes wrong."""
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
