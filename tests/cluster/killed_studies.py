"""Compares the simulated finishing time of a study with that of real ones whose runs are killed.

`python tests/cluster/killed_studies.py --studies 10` trains six runs of a study, two at a time on one core each, as two
machines of one device would. Runs are killed (SIGKILL) at exponentially distributed times, and the same command goes
on. The simulation gets the same times, and the durations of an unbroken run of each arm, timed beside another. Prints
each study, the median time from a kill to the next step, and as its last line JSON; exits with 1 if the mean finishing
time differs by more than 15 %. The machine must be idle otherwise.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ratrain.statistics.failures import Cluster, Work, simulate

SLOTS, EVERY = 2, 16
STUDY = f"""\
id = "killed"
scale = "study"
seed.init = [1, 2, 3]
arms = ["v9"]
set.checkpoint.every = {EVERY}
set.log.every = 1
set.compile.scope = "block"
set.compile.backend = "inductor"
"""
_POLL = 0.02  # seconds


@dataclass
class Process:
    """A run in a process of its own, from its start to its first step and its end."""

    run: int
    command: list[str]
    events: Path | None

    def __post_init__(self):
        self.begun = time.monotonic()
        self.stepped: float | None = None
        self._seen = self.steps()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, start_new_session=True, **quiet)

    def steps(self) -> int:
        files = [self.events] if self.events else []
        return sum(file.read_text().count('"event": "Window"') for file in files if file.exists())

    def look(self) -> int | None:
        """Notes when the first step is done; returns the exit code, once there is one."""
        if self.stepped is None and self.steps() > self._seen:
            self.stepped = time.monotonic()
        return self.process.poll()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def failures(mtbf: float, seed: int) -> Iterator[tuple[float, int]]:
    """Yields times and slots in order, drawn as the simulation draws them from a generator of this seed."""
    rng = np.random.default_rng(seed)
    ahead = [(rng.exponential(mtbf), slot) for slot in range(SLOTS)]
    heapq.heapify(ahead)
    while True:
        at, slot = heapq.heappop(ahead)
        yield at, slot
        heapq.heappush(ahead, (at + rng.exponential(mtbf), slot))


class Study:
    """The runs of the study below `out`, by their numbers."""

    def __init__(self, file: Path, out: Path):
        words = [sys.executable, "-m", "ratrain", "--ablate", str(file), "--device", "cpu", "--out", str(out)]
        planned = subprocess.run([*words, "--dry-run", "--json"], capture_output=True, check=True, text=True)
        plan = json.loads(planned.stdout)
        tasks = [(arm["id"], arm["recipe"], seed) for seed, _ in plan["seeds"] for arm in plan["arms"]]
        self.arms = [name for name, *_ in tasks]
        self._folders = [out / f"{name}-study-{recipe[:8]}" / f"s{seed}" for name, recipe, seed in tasks]
        self._words = words

    def start(self, run: int) -> Process:
        return Process(run, [*self._words, "--run", str(run + 1)], self._folders[run] / "events.jsonl")

    def train(self, mtbf: float, seed: int) -> tuple[float, int, list[float]]:
        """Trains all runs; returns the finishing time, the number of kills, and the seconds from each to a step."""
        queue, slots = list(range(len(self.arms))), [None] * SLOTS
        ahead, began = failures(mtbf, seed), time.monotonic()
        at, victim = next(ahead)
        kills, back, killed = 0, [], set()
        while queue or any(slots):
            if time.monotonic() - began >= at:
                if (lost := slots[victim]) is not None:
                    lost.kill()
                    queue.insert(0, lost.run)
                    killed.add(lost.run)
                    slots[victim], kills = None, kills + 1
                at, victim = next(ahead)
            for slot, process in enumerate(slots):
                if process is None:
                    slots[slot] = self.start(queue.pop(0)) if queue else None
                elif (code := process.look()) is not None:
                    assert code == 0, f"run {process.run + 1} ends with {code}"
                    slots[slot] = None
                elif process.stepped and process.run in killed:
                    killed.remove(process.run)
                    back.append(process.stepped - process.begun)
            time.sleep(_POLL)
        return time.monotonic() - began, kills, back


def measured(study: Study, steps: int) -> dict[str, Work]:
    """Returns the work of each arm: trains one run of each, side by side."""
    running = [study.start(study.arms.index(arm)) for arm in dict.fromkeys(study.arms)]
    found = {}
    while running:
        time.sleep(_POLL)
        for process in list(running):
            if process.look() is None:
                continue
            running.remove(process)
            start, trained = process.stepped - process.begun, time.monotonic() - process.stepped
            found[study.arms[process.run]] = Work(trained, 1, trained * EVERY / steps, 0.0, start)
    return found


def cli() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--mtbf", type=float, default=60.0, help="seconds between failures of one of the two machines")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    real, foretold, back = [], [], []
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / "killed.toml"
        file.write_text(STUDY)
        for name in ("warm", "timed"):  # the first compiles and keeps its graphs
            study = Study(file, Path(root) / name)
            works = measured(study, steps=_steps(Path(root) / name))
        for arm, work in works.items():
            print(f"{arm}: {work.restart:.1f} s to its first step, then {work.seconds:.1f} s", flush=True)
        for seed in range(args.studies):
            out = Path(root) / f"study-{seed}"
            study = Study(file, out)
            took, kills, seconds = study.train(args.mtbf, seed)
            shutil.rmtree(out)
            rng = np.random.default_rng(seed)
            told = simulate([works[arm] for arm in study.arms], Cluster(SLOTS, 1, args.mtbf), rng).finish
            real, foretold, back = [*real, took], [*foretold, told], [*back, *seconds]
            print(
                f"study {seed}: {kills} kills, {took:.0f} s, simulated {told:.0f} s ({told / took - 1:+.1%})",
                flush=True,
            )
    off = sum(foretold) / sum(real) - 1
    print(f"from a kill to the next step: median {statistics.median(back):.1f} s of {len(back)}")
    print(json.dumps({"real": real, "simulated": foretold, "off": off, "back": back}))
    return int(abs(off) > 0.15)


def _steps(out: Path) -> int:
    """Returns the steps of a run, from the events of one below `out`."""
    lines = next(out.glob("*/s1/events.jsonl")).read_text().splitlines()
    return max(event["step"] for event in map(json.loads, lines) if event["event"] == "Window")


if __name__ == "__main__":
    sys.exit(cli())
