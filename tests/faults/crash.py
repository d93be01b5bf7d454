"""Kills runs at counted points, lets the same command go on, and compares what comes out with the unbroken run.

`python tests/faults/crash.py --points 60` forks: torch is imported once, and each run is a child that ends itself with
SIGKILL at its n-th point. A point stands before every call that opens, writes, syncs, renames or deletes a file, in
the middle of every write, and before and within each training step, evaluation and compile. With `--asynchronous` the
points of a checkpoint come between those of the steps beside which it is written; with `--processes N` FSDP divides the
model among N processes, one of which is killed. Prints a table, and as its last line JSON; exits with 1 where a run did
not come back the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from ratrain.cli import main
from ratrain.engine.engine import Engine
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import TrainStep
from ratrain.storage.checkpoint import listed, load
from tests.machine.ranks import forked

KEEP = 2
IN_PLACE = "a checkpoint is in place"  # told after the rename: no point, since a thread may write it
KEYS = (
    *("train.budget.steps={steps}", "log.every=3", "eval.every=5", "eval.windows=4", "checkpoint.every=2"),
    *(f"checkpoint.keep={KEEP}", "model.dropout=0.1"),
)
EAGER, COMPILED = "compile.scope=off", "compile.backend=inductor"
_FILE_CALLS = ("open", "write", "fsync", "close", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate")
# what a run states of itself that a crash must not change; the rest are times and places
_FACTS = {"Window": ("losses", "grad_norms", "lr", "tokens", "skipped"), "Evaluated": ("loss",), "Sampled": ("text",)}


# -- in the child: points, and the end at one of them -----------------------------------------------------------------


class Points:
    """Counts what the run comes past; at number `end` the process is killed."""

    def __init__(self, end: int, told: int):
        self.end, self.told, self.count = end, told, 0
        self.places: dict[int, str] = {}  # of open files

    def reach(self, label: str, last_words: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self.end:
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)
        _write(self.told, f"{label}\n".encode())

    def file_call(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            place = self._place(args[0])
            placing = name == "rename" and Path(args[1]).name.startswith("step-")
            if place:
                self.reach(f"{place} {name}" + (" into place" if placing else ""))
                if name == "write" and len(args[1]) > 1:
                    self.reach(f"{place} half written", lambda: real(args[0], args[1][: len(args[1]) // 2]))
            result = real(*args, **kwargs)
            if name == "open":
                self.places[result] = place
            if placing:
                _write(self.told, f"{IN_PLACE}\n".encode())
            return result

        return call

    def _place(self, target: object) -> str:
        """What is touched, by a word; empty for what is no file of the run."""
        if isinstance(target, int):
            return self.places.get(target, "")
        path = Path(os.fsdecode(target))  # type: ignore[arg-type]
        if "checkpoints" in path.parts or path.name in ("model.safetensors", "optimizer.safetensors", "SHA256SUMS"):
            return "checkpoint"
        words = {"events.jsonl": "events", "run.lock": "lock"}
        inside = any(part.startswith("s1") for part in path.parts)
        return words.get(path.name, "run folder") if inside else ""


_write = os.write


def arm(points: Points) -> None:
    for name in _FILE_CALLS:
        setattr(os, name, points.file_call(name, getattr(os, name)))
    for owner, name, label in (
        *((TrainStep, "__call__", "step begins"), (TrainStep, "_clip", "step, gradients there")),
        *((Evaluator, "__call__", "evaluation"), (Engine, "_compile", "compile")),
    ):
        setattr(owner, name, _before(getattr(owner, name), points, label))


def _before(real: Callable, points: Points, label: str) -> Callable:
    def call(*args, **kwargs):
        points.reach(label)
        return real(*args, **kwargs)

    return call


def run(argv: list[str], *, end: int, processes: int = 1) -> tuple[int, list[str], int]:
    """Runs the command in children, of which one ends at its point `end` (0: never): which one depends on `end`.

    Returns the status of that child, the points that it came past, and the number of checkpoints put in place.
    """
    victim = end % processes

    def member(rank: int, told: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            arm(Points(end if rank == victim else 0, told))
            return main(argv)

    children = forked(processes, member)
    lines = [_all(read) for _, read in children]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    labels = [line for line in lines[victim] if line != IN_PLACE]
    return codes[victim], labels, sum(of.count(IN_PLACE) for of in lines)


def _all(read: int) -> list[str]:
    with open(read, encoding="utf-8") as told:
        return told.read().splitlines()


# -- in the parent: what came out -------------------------------------------------------------------------------------


def outcome(out: Path) -> dict:
    """What the unbroken run and one that was killed must have in common, of the only run in `out`."""
    (folder,) = out.glob("*/s1")
    newest = listed(folder / "checkpoints")[0]
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in newest.glob("*.safetensors")}
    facts = [
        [event["event"], event["step"], [event[name] for name in _FACTS[event["event"]]]]
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if event["event"] in _FACTS
    ]
    return {"files": files, "facts": facts, "status": json.loads((folder / "state.json").read_text())["status"]}


def wrong_after_kill(out: Path, completed: int) -> Iterator[str]:
    """What must hold of what a kill leaves: every checkpoint there is whole, and none that was whole is lost."""
    found = [path for folder in out.glob("*/s1") for path in listed(folder / "checkpoints")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's other threads do not live on in the next fork, which would wait for them
    for path in found:
        load(path)  # raises DataError
    torch.set_num_threads(threads)
    if len(found) < min(completed, KEEP):
        yield f"{len(found)} checkpoints left of {completed}"


def wrong_after_resume(out: Path, unbroken: dict) -> Iterator[str]:
    left = [path.name for path in out.rglob("*.part")]
    if left:
        yield f"left over: {', '.join(left)}"
    now = outcome(out)
    yield from (f"{key} differ" for key in unbroken if now[key] != unbroken[key])


def trial(
    command: Callable[[Path], list[str]], out: Path, ends: list[int], unbroken: dict, processes: int
) -> list[str]:
    """Kills a run at each of `ends` in turn, counted from where it went on, and lets it finish; what was wrong."""
    wrong, completed = [], 0
    for end in ends:
        code, _, placed = run(command(out), end=end, processes=processes)
        if code != -signal.SIGKILL:
            break  # it was done before that point
        completed += placed
        wrong += [f"point {end}: {what}" for what in wrong_after_kill(out, completed)]
    code, *_ = run(command(out), end=0, processes=processes)
    if code:
        return [*wrong, f"the resumed run ends with {code}"]
    wrong += wrong_after_resume(out, unbroken)
    shutil.rmtree(out)
    return wrong


def in_parallel(
    command, plans: list[list[int]], root: Path, unbroken: dict, jobs: int, processes: int
) -> list[list[str]]:
    """`trial` of every plan, shared among `jobs` forked processes; in the order of `plans`."""
    pipes = []
    for job in range(jobs):
        read, write = os.pipe()
        if not os.fork():
            own = plans[job::jobs]
            found = [trial(command, root / "-".join(map(str, ends)), ends, unbroken, processes) for ends in own]
            with open(write, "w", encoding="utf-8") as told:
                json.dump(found, told)
            os._exit(0)
        os.close(write)
        pipes.append(read)
    results: list[list[str]] = [["its process died"] for _ in plans]
    for job, read in enumerate(pipes):
        with open(read, encoding="utf-8") as told:
            results[job::jobs] = json.load(told)
    while jobs:
        os.wait()
        jobs -= 1
    return results


def plan(total: int, points: int, *, seed: int = 0) -> list[list[int]]:
    """Which points to end at: spread over all of them; every fourth run is killed a second time where it went on."""
    chance = random.Random(seed)
    ends = sorted({1 + round(index * (total - 1) / max(points - 1, 1)) for index in range(points)})
    return [[end, chance.randint(1, max(2, total - end))] if at % 4 == 3 else [end] for at, end in enumerate(ends)]


def experiment(
    *, points: int, compiled: bool, threads: int, jobs: int, steps: int, asynchronous: bool, processes: int, root: Path
) -> dict:
    torch.set_num_threads(threads)
    keys = [key.format(steps=steps) for key in (*KEYS, COMPILED if compiled else EAGER)]
    keys.append(f"checkpoint.asynchronous={'on' if asynchronous else 'off'}")
    keys += ["parallel.strategy=fsdp"] if processes > 1 else []
    words = ["v9", "--scale", "tiny", "--device", "cpu", *(word for key in keys for word in ("--set", key))]

    def command(out: Path) -> list[str]:
        return [*words, "--out", str(out)]

    code, labels, _ = run(command(root / "unbroken"), end=0, processes=processes)
    assert code == 0, f"the unbroken run ends with {code}"
    unbroken = outcome(root / "unbroken")
    assert outcome(root / "unbroken")["status"] == "done"
    plans = plan(len(labels), points)
    found = in_parallel(command, plans, root, unbroken, jobs, processes)
    phases = Counter(labels[ends[0] - 1].split(",")[0] for ends in plans)
    return {
        "runs": len(plans),
        "kills": sum(map(len, plans)),
        "points_in_a_run": len(labels),
        "killed_at": dict(phases.most_common()),
        "compiled": compiled,
        "threads": threads,
        "asynchronous": asynchronous,
        "processes": processes,
        "wrong": [f"killed at {ends}: {what}" for ends, whats in zip(plans, found, strict=True) for what in whats],
    }


def cli() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--steps", type=int, default=12, help="of a run; each has about 30 points")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="2 or more: FSDP divides the model among them")
    parser.add_argument("--asynchronous", action="store_true", help="checkpoints are written beside the steps")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        result = experiment(**vars(args), root=Path(root))
    for label, count in result["killed_at"].items():
        print(f"{count:5}  {label}")
    for line in result["wrong"]:
        print(f"WRONG  {line}")
    print(json.dumps(result))
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(cli())
