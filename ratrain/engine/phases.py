"""Seconds spent in each phase of a run: train, compile, fit, evaluate, examine, save."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ratrain.events import Emit, PhaseStarted
from ratrain.machine.device import synchronize


class Phases:
    """Wall-clock seconds by phase, in this session of the run."""

    def __init__(self, emit: Emit, device: torch.device):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._emit, self._device = emit, device

    @contextmanager
    def timed(self, name: str, *, note: str | None = "") -> Iterator[Callable[[], float]]:
        """Adds the time of the block to phase `name`, and publishes its start unless `note` is None.

        Yields a function that returns the seconds since the block began.
        """
        if note is not None:
            self._emit(PhaseStarted(name, note))
        start = time.perf_counter()
        yield lambda: time.perf_counter() - start
        synchronize(self._device)
        self.seconds[name] += time.perf_counter() - start
