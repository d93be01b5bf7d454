"""Measures the cost of a train step of each arm in isolation, never from the clocks of concurrent training runs.

One process times each arm against the baseline, with steps interleaved A B B A and nothing else of the study running.
The clock is CPU time of one thread on a CPU, and wall time with the device synchronized on a GPU.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ratrain.ablation.arms import Task
from ratrain.ablation.record import Cost, read_study
from ratrain.ablation.running.pool import run_devices
from ratrain.data.source import open_data
from ratrain.engine.assembly import train_step
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import environment, keep_freed_memory, pick_device, set_determinism, synchronize
from ratrain.profile.paired_timing import Ratio, measure

ROUNDS = 40  # half of it is enough for an interval of about a percent
_WARM = 3  # warm-up steps before the first timed one


@dataclass(frozen=True)
class Measured:
    """The step cost of one arm relative to the baseline, and the machine of the measurement."""

    arm: str
    cost: Cost
    machine: str


def step_costs(tasks: Sequence[Task], *, device: str, rounds: int = ROUNDS) -> Iterator[Measured]:
    """Yields the step cost of each task's arm against the first task's arm; the first result is that arm against
    itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ratrain.ablation.running.worker"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(tasks, device, rounds, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        with contextlib.suppress(EOFError):
            while True:
                yield ours.recv()
        process.join()
    finally:
        if process.is_alive():
            process.kill()


def _work(tasks: Sequence[Task], device: str, rounds: int, pipe: Connection) -> None:
    base = tasks[0]
    place = pick_device(device)
    keep_compiled_code()
    keep_freed_memory()
    set_determinism(base.manifest().train.deterministic, place)
    if place.type == "cpu":
        torch.set_num_threads(1)
    clock = _device_clock(place) if place.type == "cuda" else time.process_time
    machine = str(environment(place)["device" if place.type == "cuda" else "cpu"])
    own = _step_of(base, device)
    for task in tasks:
        took = measure({"base": own, "arm": _step_of(task, device)}, rounds=rounds, clock=clock)
        ratio = Ratio.of(took["arm"], took["base"])
        cost = Cost(statistics.median(took["arm"]), ratio.median, (ratio.low, ratio.high), rounds)
        pipe.send(Measured(task.arm, cost, machine))


def _step_of(task: Task, device: str) -> Callable[[], object]:
    """Builds a warmed-up train step of the run with every mechanism open; each call takes the next batch."""
    manifest, place = task.manifest(), pick_device(device)
    spec = manifest.model
    data = open_data(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    sampler = data.sampler(seed=1, batch=manifest.train.batch, block_size=spec.block_size)
    _, step = train_step(manifest, lr=manifest.schedule.lr / 10, device=device)
    batches = iter(range(1 << 60))

    def once() -> object:
        return step(*(tensor.to(place) for tensor in sampler.batch(next(batches))))

    for _ in range(_WARM):
        once()
    return once


def _device_clock(device: torch.device) -> Callable[[], float]:
    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    return now


def recorded_costs(out: Path, study: str, tasks: Sequence[Task], *, device: str, fresh: bool) -> dict[str, float]:
    """Returns the cost of a step by arm, relative to the first arm: as the study below `out` recorded it, else
    measured now."""
    base, known = tasks[0].arm, {}
    folder = out / "studies" / study
    if (folder / "events.jsonl").exists() and not fresh:
        on_record = read_study(folder).now
        known = {arm.name: (on_record.base.tokens or 1) / (arm.tokens or 1) for arm in on_record.arms}
    new = [task for task in tasks if task.arm not in known]
    measured = step_costs([tasks[0], *new], device=run_devices(device)[0]) if new else ()
    return known | {found.arm: found.cost.ratio for found in measured if found.arm != base}
