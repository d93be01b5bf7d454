"""The phases of a run - train, compile, fit, evaluate, examine, save - and the seconds that each has taken."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ratrain.events import Emit, PhaseStarted
from ratrain.machine.device import synchronize


class Phases:
    """Seconds of wall time by phase, over this session of the run."""

    def __init__(self, emit: Emit, device: torch.device):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._emit, self._device = emit, device

    @contextmanager
    def timed(self, name: str, *, note: str | None = "") -> Iterator[Callable[[], float]]:
        """Adds the time of the block to phase `name`, and publishes its start unless `note` is None.

        The value of the context is a function that returns the seconds since the block began.
        """
        if note is not None:
            self._emit(PhaseStarted(name, note))
        start = time.perf_counter()
        yield lambda: time.perf_counter() - start
        synchronize(self._device)
        self.seconds[name] += time.perf_counter() - start
