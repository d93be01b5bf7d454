"""Heartbeats between the processes of a run: one that is stopped, or on a machine that is lost, is noticed in a minute.

A process that waits for another in a collective cannot look for it. So a thread of each process writes a count, its
step and its place into the store of the process group every five seconds, and reads the counts of others: rank 0 reads
all, the others that of rank 0. A second thread watches whether these counts move, because reading waits for ever if the
process that holds the store is the one that is stopped. Silence is counted in beats of the watcher: where the whole job
was suspended, nobody was silent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread

import torch.distributed as dist

from ratrain.errors import Exit

PERIOD = 5.0  # seconds between beats
SILENT = 12  # beats without one of another process, until it counts as lost
_LEFT = -1  # in place of the count, of a process that has left
_TOLD = 60.0  # seconds between two readings for the run's events


@dataclass
class Beat:
    """What was heard last of a process: its count, its step, where it runs, and how many beats ago."""

    count: int = 0
    step: int = 0
    place: str = "not heard yet"
    silent: int = 0


@dataclass
class Heartbeat:
    """The beats of one process of `size`, and what it hears of the others.

    If one is silent for too long, `last_words` gets the message, and this process ends with 69 at once: its main thread
    may wait for the lost one for ever.
    """

    store: dist.Store
    rank: int
    size: int
    step: int = 0
    last_words: Callable[[str], None] = lambda message: None
    _heard: dict[int, Beat] = field(default_factory=dict)
    _ended: Event = field(default_factory=Event)
    _told: float = 0.0

    def __post_init__(self):
        others = range(1, self.size) if self.rank == 0 else [0]
        self._heard = {rank: Beat() for rank in others}
        self.store.set_timeout(timedelta(seconds=PERIOD))
        self._speaker = Thread(target=self._speak, daemon=True)
        self._speaker.start()
        Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Tells the others that this process leaves as it should, and ends the threads."""
        self._ended.set()
        self._speaker.join(PERIOD)  # it may wait for a store that is lost

    def reading(self) -> dict[int, tuple[int, float]] | None:
        """Returns step and seconds of silence of each process, by rank: once a minute and on rank 0, else None."""
        now = time.monotonic()
        if self.rank or (self._told and now - self._told < _TOLD) or any(not b.count for b in self._heard.values()):
            return None
        self._told = now
        others = {rank: (beat.step, beat.silent * PERIOD) for rank, beat in self._heard.items()}
        return {0: (self.step, 0.0), **others}

    # -- the threads -----------------------------------------------------------------------------------------------

    def _speak(self) -> None:
        count, place = 0, f"{socket.gethostname()}, pid {os.getpid()}"
        while not self._ended.is_set():
            count += 1
            self._say(f"{count} {self.step} {place}")
            with contextlib.suppress(RuntimeError):
                self._listen()
            self._ended.wait(PERIOD)
        self._say(f"{_LEFT} {self.step} {place}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store is lost, or slow: silence of the others decides
            self.store.set(f"beat/{self.rank}", text)

    def _listen(self) -> None:
        told = self.store.multi_get([f"beat/{rank}" for rank in self._heard])
        for beat, text in zip(self._heard.values(), told, strict=True):
            count, step, beat.place = text.decode().split(" ", 2)
            beat.count, beat.step = int(count), int(step)

    def _watch(self) -> None:
        counts = dict.fromkeys(self._heard, 0)
        while not self._ended.wait(PERIOD):
            for rank, beat in self._heard.items():
                beat.silent = 0 if beat.count == _LEFT or beat.count > counts[rank] else beat.silent + 1
                counts[rank] = beat.count
                if beat.silent >= SILENT:
                    self._end(rank)

    def _end(self, lost: int) -> None:
        beat = self._heard[lost]
        message = (
            f"process {lost} of {self.size} ({beat.place}; last at step {beat.step}) has not been heard for "
            f"{SILENT * PERIOD:.0f} s: it is stopped, or its machine is lost; the same command goes on from the last "
            "checkpoint"
        )
        try:
            self.last_words(message)
            print(f"ratrain: {message}", file=sys.stderr, flush=True)
        finally:
            os._exit(Exit.UNAVAILABLE)
