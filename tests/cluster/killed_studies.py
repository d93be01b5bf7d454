"""Compares the simulated finishing time of a study with that of real ones whose runs are killed.

`python tests/cluster/killed_studies.py --studies 10` trains six runs of a study, two at a time on one core each, as two
machines of one device would. Runs are killed (SIGKILL) at exponentially distributed times, and the same command goes
on. The simulation gets the same times, and what the runs of that study measured of themselves: a step, a start, and the
time from the last step to the end. Prints each study, the median time from a kill to the next step, and as its last
line JSON; exits with 1 if the finishing times together differ by more than 15 %.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
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
    events: Path

    def __post_init__(self):
        self.begun = time.monotonic()
        self.stepped = self.ended = 0.0
        self._starts = len(self.found("RunStarted"))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, start_new_session=True, **quiet)

    def found(self, kind: str) -> list[dict]:
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        return [json.loads(line) for line in lines if f'"event": "{kind}"' in line and line.endswith("}")]

    def look(self) -> int | None:
        """Notes when the first step is done, and the end; returns the exit code, once there is one."""
        if not self.stepped and len(self.found("RunStarted")) > self._starts:
            steps = self.found("Window")
            if steps and steps[-1]["step"] > self.began_at():
                self.stepped = time.monotonic()
        code = self.process.poll()
        self.ended = time.monotonic() if code is not None else 0.0
        return code

    def began_at(self) -> int:
        """The step that it went on from."""
        return max((event["step"] for event in self.found("Resumed")), default=0)

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

    def train(self, mtbf: float, seed: int) -> tuple[float, int, list[Process]]:
        """Trains all runs; returns the finishing time, the number of kills, and every process."""
        queue, slots, seen = list(range(len(self.arms))), [None] * SLOTS, []
        ahead, began, kills = failures(mtbf, seed), time.monotonic(), 0
        at, victim = next(ahead)
        while queue or any(slots):
            if time.monotonic() - began >= at:
                if (lost := slots[victim]) is not None:
                    lost.kill()
                    queue.insert(0, lost.run)
                    slots[victim], kills = None, kills + 1
                at, victim = next(ahead)
            for slot, process in enumerate(slots):
                if process is None and queue:
                    slots[slot] = self.start(queue.pop(0))
                    seen.append(slots[slot])
                elif process is not None and (code := process.look()) is not None:
                    assert code == 0, f"run {process.run + 1} ends with {code}"
                    slots[slot] = None
            time.sleep(_POLL)
        return time.monotonic() - began, kills, seen

    def works(self, seen: list[Process]) -> dict[str, Work]:
        """Returns the work of each arm, from the processes of the study."""
        start = statistics.median(process.stepped - process.begun for process in seen if process.stepped)
        found = {}
        for arm in dict.fromkeys(self.arms):
            own = [process for process in seen if self.arms[process.run] == arm and process.ended]
            steps = own[0].found("Window")[-1]["step"]
            spent = [[e["seconds"] for e in p.found("Window")] + [e["stall"] for e in p.found("Saved")] for p in own]
            each = statistics.median(map(sum, spent)) / steps
            tail = statistics.median(p.ended - p.stepped - each * (steps - p.began_at() - 1) for p in own)
            found[arm] = Work(each * steps + tail, 1, each * EVERY, restart=start - each)
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
        warm = Study(file, Path(root) / "warm")  # compiles and keeps its graphs
        warm.train(1e9, 0)
        for seed in range(args.studies):
            study = Study(file, Path(root) / f"study-{seed}")
            took, kills, seen = study.train(args.mtbf, seed)
            works = study.works(seen)
            rng = np.random.default_rng(seed)
            told = simulate([works[arm] for arm in study.arms], Cluster(SLOTS, 1, args.mtbf), rng).finish
            again = [process.stepped - process.begun for process in seen if process.stepped and process.began_at()]
            real, foretold, back = [*real, took], [*foretold, told], [*back, *again]
            off = told / took - 1
            print(f"study {seed}: {kills} kills, {took:.0f} s, simulated {told:.0f} s ({off:+.1%})", flush=True)
    off = sum(foretold) / sum(real) - 1
    print(f"from a kill to the next step: median {statistics.median(back):.1f} s of {len(back)}")
    print(json.dumps({"real": real, "simulated": foretold, "off": off, "back": back}))
    return int(abs(off) > 0.15)


if __name__ == "__main__":
    sys.exit(cli())
