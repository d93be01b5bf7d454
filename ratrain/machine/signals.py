"""Stop signals: after the first the run finishes its step and saves; a second SIGINT exits at once.

A run of several processes finishes its window instead, so that all stop after the same step.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ratrain.errors import Exit

_POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


GRACE = 30  # seconds between a signal and the kill by torchrun, to finish a step and save


class StopRequest:
    """A context in which SIGINT, SIGTERM and SIGUSR1 set `asked`; a later SIGINT ends the process with 130.

    Of several processes only one prints a message: the one with `aloud`.
    """

    def __init__(self, *, aloud: bool = True):
        self.asked: str | None = None
        self._aloud = aloud
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # handlers can be set in the main thread only
            self._old = {number: signal.signal(number, self._handle) for number in _POLITE}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            _say("\x1b[?25h" if os.isatty(2) else "")  # a live bar hides the cursor
            os._exit(Exit.INTERRUPTED)  # at once: the last checkpoint is complete at any time
        if self._aloud:
            _say("\nstopping after this step, then saving; Ctrl-C again leaves at once\n")
        self.asked = signal.Signals(number).name


def _say(text: str) -> None:
    os.write(2, text.encode())  # print is not safe in a handler: it may interrupt another print
