"""Heartbeats between the processes of a run: one that is stopped, or on a machine that is lost, is noticed in a minute.

A process that waits for another in a collective cannot look for it. So a thread of each process writes a count, its
step and its place into the store of the process group every five seconds, and reads the counts of others: rank 0 reads
all, the others that of rank 0. A second thread watches whether these counts move, because the first one waits for ever
if the process that holds the store is stopped.

Silence is counted in beats of the watcher: where the whole job was suspended, nobody was silent. While steps advance,
everyone lives. A store that does not answer says nothing of the others, and gets three times the patience.
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
_STORE = 3  # times as long until the store counts as lost
_LEFT = -1  # in place of the count, of a process that has left
_VERDICT = "beat/lost"  # key of what rank 0 found, for the others to repeat
_TOLD = 60.0  # seconds between two readings for the run's events
_LAST = 5.0  # seconds for the last words, which go to a disk that may hang


@dataclass
class Beat:
    """What was heard last of a process: its count, its step, where it runs, and how many beats ago."""

    count: int = 0
    step: int = 0
    place: str = "not heard yet"
    silent: int = 0
    counted: int = 0  # the count at the watcher's last beat


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
    _rounds: int = 0  # in which the store has answered
    _last: tuple[int, int] = (-1, -1)  # rounds and step at the watcher's last beat
    _unanswered: int = 0  # beats
    _clean: bool = False

    def __post_init__(self):
        others = range(1, self.size) if self.rank == 0 else [0]
        self._heard = {rank: Beat() for rank in others}
        self.store.set_timeout(timedelta(seconds=PERIOD))
        self._speaker = Thread(target=self._speak, daemon=True)
        self._speaker.start()
        Thread(target=self._watch, daemon=True).start()

    def stop(self, *, clean: bool) -> None:
        """Ends the threads; after a `clean` end the others do not miss this process."""
        self._clean = clean
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
            with contextlib.suppress(RuntimeError):
                self.store.set(f"beat/{self.rank}", f"{count} {self.step} {place}")
                self._listen()
                self._rounds += 1
            self._ended.wait(PERIOD)
        if self._clean:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"beat/{self.rank}", f"{_LEFT} {self.step} {place}")

    def _listen(self) -> None:
        for rank, beat in self._heard.items():
            if self.store.check([key := f"beat/{rank}"]):  # `get` would wait for it
                count, step, beat.place = self.store.get(key).decode().split(" ", 2)
                beat.count, beat.step = int(count), int(step)
        if self.rank and self.store.check([_VERDICT]):
            self._end(self.store.get(_VERDICT).decode())

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            self._tick()

    def _tick(self) -> None:
        """Counts one more beat of silence of those that were not heard since the last one."""
        last, self._last = self._last, (self._rounds, self.step)
        answered, moved = self._rounds != last[0], self.step != last[1]
        self._unanswered = 0 if answered or moved else self._unanswered + 1
        for rank, beat in self._heard.items():
            if moved or beat.count == _LEFT or beat.count > beat.counted:
                beat.silent = 0
            elif answered:
                beat.silent += 1
            beat.counted = beat.count
            if beat.silent >= SILENT:
                self._find(rank)
        if self._unanswered >= _STORE * SILENT:
            own = f"process {self.rank} of {self.size} for {_STORE * SILENT * PERIOD:.0f} s"
            self._end(f"the store of the group has not answered {own}: who holds it is stopped or lost")

    def _find(self, lost: int) -> None:
        beat = self._heard[lost]
        message = (
            f"process {lost} of {self.size} ({beat.place}; last at step {beat.step}) has not been heard for "
            f"{SILENT * PERIOD:.0f} s: it has failed or is stopped, or its machine is lost"
        )
        if self.rank == 0:
            with contextlib.suppress(RuntimeError):
                self.store.set(_VERDICT, message)
        self._end(message)

    def _end(self, what: str) -> None:
        """Says why, and ends the process at once: its main thread may wait in a collective for ever."""
        message = f"{what}; the same command goes on from the last checkpoint"
        print(f"ratrain: {message}", file=sys.stderr, flush=True)
        last = Thread(target=self.last_words, args=(message,), daemon=True)
        last.start()
        last.join(_LAST)
        os._exit(Exit.UNAVAILABLE)
