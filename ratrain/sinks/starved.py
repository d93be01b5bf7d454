"""Warns once if a run on a CPU gets much less CPU time than wall time."""

from __future__ import annotations

import time
from collections.abc import Callable

from ratrain.events import Emit, Event, Notice, PhaseStarted, Window

_LOOK = 10.0  # seconds of training per check
_LEAST = 0.7  # CPUs: a run alone keeps one busy, except while it waits for a disk


class Starved:
    """Emits one warning if the process had less than `_LEAST` CPUs over `_LOOK` seconds of training.

    The time between two windows counts unless another phase began in between, such as an evaluation.
    """

    def __init__(
        self, emit: Emit, *, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ):
        self._emit, self._clock, self._cpu = emit, clock, cpu
        self._last: tuple[float, float] | None = None  # clock and CPU time at the last window, if no phase began since
        self._wall = self._had = 0.0
        self._told = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self._last = None
        if self._told or not isinstance(event, Window):
            return
        now = self._clock(), self._cpu()
        if self._last:
            self._wall += now[0] - self._last[0]
            self._had += now[1] - self._last[1]
        self._last = now
        if self._wall < _LOOK:
            return
        if self._had < _LEAST * self._wall:
            self._told = True
            self._emit(Notice(self._message(), "warning"))
        self._wall = self._had = 0.0

    def _message(self) -> str:
        return (
            f"the run had {self._had:.1f} s of CPU time in {self._wall:.1f} s: other programs use this machine's "
            "cores, or its data arrive slowly; it trains the same, later"
        )
