"""A pool of processes that runs the tasks of a study: one process per run, a fixed number of runs at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import FrameType

import psutil
import torch

from ratrain.ablation.arms import Task
from ratrain.errors import Exit, MemoryShortError
from ratrain.events import Compiled, Event, Window
from ratrain.machine.device import pick_device
from ratrain.run.start import Launch

_TRIES = 3  # attempts at a run whose process dies without a result; each resumes from the last checkpoint


@dataclass(frozen=True)
class Began:
    """A process was started for a run."""

    task: Task


@dataclass(frozen=True)
class Published:
    """An event that a run published."""

    task: Task
    event: Event


@dataclass(frozen=True)
class Ended:
    """The end of a run: its exit code and the reason in words; and, of a run on another machine, its seconds."""

    task: Task
    code: int
    reason: str
    seconds: float | None = None


@dataclass
class _Slot:
    """A device and the run that occupies it."""

    device: str
    task: Task
    process: ForkServerProcess
    pipe: Connection
    lifeline: Connection
    result: tuple[int, str] | None = None


@dataclass
class Pool:
    """Runs tasks on `devices`, one at a time per entry; `devices` may list a device more than once.

    If several runs compile the same graphs, one compiles first and the others wait, then take the code from the cache.
    After the first SIGINT or SIGTERM every run saves and ends. A second SIGINT kills all runs at once.
    """

    launch: Launch  # of every run; `device` is replaced per run
    devices: Sequence[str]
    on_message: Callable[[Began | Published | Ended], None]
    asked: bool = False
    _busy: list[_Slot] = field(default_factory=list)
    _again: set[str] = field(default_factory=set)  # folders of runs whose process died
    _warm: set[str] = field(default_factory=set)  # digests of graphs in the compile cache

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs every task to its end, or until a signal stops the pool."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ratrain.ablation.running.worker"])
        todo, tries = list(tasks), dict.fromkeys((task.folder for task in tasks), 0)
        free = list(self.devices)
        with signals(self._stop):
            while self._busy or (todo and not self.asked):
                while free and not self.asked and (task := self._next(todo)):
                    todo.remove(task)
                    tries[task.folder] += 1
                    self._begin(context, task, free.pop(0))
                for slot in self._finished():
                    free.append(slot.device)
                    if slot.result is None and not self.asked and tries[slot.task.folder] < _TRIES:
                        todo.insert(0, slot.task)
                        self._again.add(slot.task.folder)
                        continue
                    silent = Exit.PREEMPTED if self.asked else Exit.GAVE_UP, "died without an error message"
                    self.on_message(Ended(slot.task, *(slot.result or silent)))

    def _next(self, todo: Sequence[Task]) -> Task | None:
        """Returns the first task whose graphs no running task is still compiling."""
        cold = {slot.task.graphs for slot in self._busy} - self._warm
        return next((task for task in todo if task.graphs not in cold), None)

    def _begin(self, context, task: Task, device: str) -> None:
        from ratrain.ablation.running.worker import work

        ours, theirs = context.Pipe(duplex=False)
        watched, lifeline = context.Pipe(duplex=False)
        fresh = self.launch.fresh and task.folder not in self._again  # a second attempt goes on from the first
        launch = replace(self.launch, device=device, fresh=fresh)
        process = context.Process(target=work, args=(task, launch, theirs, watched), daemon=True)
        process.start()
        theirs.close()
        watched.close()
        self._busy.append(_Slot(device, task, process, ours, lifeline))
        self.on_message(Began(task))

    def _finished(self) -> Iterator[_Slot]:
        """Waits up to 1 s for messages of the runs, forwards their events, and yields the slots of runs that ended."""
        pipes = {slot.pipe: slot for slot in self._busy}
        for pipe in wait(list(pipes), timeout=1.0):
            slot = pipes[pipe]  # type: ignore[index]
            try:
                said = slot.pipe.recv()
            except (EOFError, OSError):
                slot.process.join()
                slot.pipe.close()
                slot.lifeline.close()
                self._busy.remove(slot)
                yield slot
                continue
            if isinstance(said, tuple):
                slot.result = said
            else:
                self._warm |= {slot.task.graphs} if _has_compiled(said) else set()
                self.on_message(Published(slot.task, said))

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            for slot in self._busy:
                slot.process.kill()
            os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # a live table hides the cursor
            os._exit(Exit.INTERRUPTED)
        self.asked = True
        for slot in self._busy:
            if slot.process.pid is not None:
                os.kill(slot.process.pid, signal.SIGTERM)


def _has_compiled(event: Event) -> bool:
    """Whether the event shows that the run's compiled code is cached: `Compiled` of "evaluate", or a window without
    graphs of a run that compiles nothing."""
    if isinstance(event, Window):
        return not event.graphs
    return isinstance(event, Compiled) and event.what == "evaluate"


@contextmanager
def signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def run_devices(device: str = "auto", jobs: int | None = None, memory: float | None = None) -> list[str]:
    """Returns a device for each concurrent run: one run per GPU or core, or as many as fit with `memory` GiB each.

    `jobs` is the number of concurrent runs, if it is given. Raises MemoryShortError if not one run fits.
    """
    picked = pick_device(device)
    if picked.type == "cpu":
        fit = _fitting(psutil.virtual_memory().available, memory, "this machine")
        return ["cpu"] * (jobs or min(os.cpu_count() or 1, fit))
    several = device in ("auto", "cuda")
    gpus = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if several else [str(picked)]
    rooms = {gpu: _fitting(torch.cuda.mem_get_info(gpu)[0], memory, gpu) if memory else 1 for gpu in gpus}
    places = [gpu for turn in range(max(rooms.values())) for gpu in gpus if turn < rooms[gpu]]
    return [places[n % len(places)] for n in range(jobs or len(places))]


def _fitting(free: int, each: float | None, where: str) -> int:
    """Returns the number of runs of `each` GiB that fit into `free` bytes. Raises MemoryShortError if none fits."""
    if each is None:
        return 1 << 30
    if (fit := int(free / 2**30 / each)) < 1:
        raise MemoryShortError(f"--memory {each:g}: {where} has {free / 2**30:.1f} GiB free, less than one run takes")
    return fit
