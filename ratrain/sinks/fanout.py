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
                name = type(sink).__name__
                self(Notice(f"{name} failed and is dropped: {type(error).__name__}: {error}", "warning"))

    def close(self) -> None:
        for sink in self._optional:
            with contextlib.suppress(Exception):  # the others must still be closed
                _close(sink)
        for sink in self._essential:
            _close(sink)


def _close(sink: Emit) -> None:
    close = getattr(sink, "close", None)
    if close:
        close()
