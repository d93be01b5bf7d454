"""Measures the error rate of verdicts on commits: real steps of real processes, one arm of which burns 5 % more.

Pools of workers stay alive, and every set of a trial draws its processes from them anew. The two kinds of trial share
their sets: the old tree and its twin against an equal process (a reported difference is a false alarm), and against a
slowed process (no reported difference is a miss). Sets have fewer rounds than those of commits.py, which
errs less.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from scipy import stats

from bench.compare.arm import Arm, started
from bench.compare.verdict import NEW, OLD, TWIN, Change, Verdict, decide
from bench.compare.worker import Step, ratrain_step
from ratrain.profile.paired_timing import interleave

SLOWDOWN = 0.05
DETECTED, ALARMS = 0.95, 0.01  # required: detections at least, false alarms at most
ROUNDS = 8  # of a set
POOL = 8  # workers of each kind: with few, the differences between processes would bias the slowdown
RIGHT = {"equal": ("same", "cannot tell"), "slowed": ("slower",)}
SMALL = ["model.n_layer=1", "train.batch=1", "train.micro_batch=1"]  # of study scale: a step of some milliseconds
STEP: dict[str, Any] = {"manifest": "v9", "scale": "study_2026_11", "overrides": SMALL}


def slowed(step: Step, share: float) -> Step:
    """Returns the step followed by a busy wait of `share` times its CPU time."""

    def burn() -> None:
        start = time.process_time()
        step()
        took = time.process_time() - start
        while time.process_time() - start < (1 + share) * took:
            pass

    return burn


def slowed_step(**arguments: Any) -> Step:
    """Makes a worker's ratrain_step with these arguments, slowed down by SLOWDOWN."""
    return slowed(ratrain_step(**arguments), SLOWDOWN)


def trial(plain: Sequence[Arm], slow: Sequence[Arm], chance: random.Random) -> dict[str, Verdict]:
    """Returns the verdicts on an equal and on a slowed process, from sets of the pools of plain and of slow arms."""

    @functools.cache
    def seconds(at: int) -> dict[str, list[float]]:
        old, twin, equal = chance.sample(plain, 3)
        arms = {OLD: old, TWIN: twin, "equal": equal, "slowed": chance.choice(slow)}
        return interleave({name: arm.step for name, arm in arms.items()}, ROUNDS)

    def verdict(kind: str) -> Verdict:
        changes = (Change.of({**seconds(at), NEW: seconds(at)[kind]}) for at in itertools.count())
        return decide(lambda: next(changes))

    return {kind: verdict(kind) for kind in RIGHT}


def share_of(hits: int, n: int) -> str:
    """Formats a share with its 95 % interval (Clopper-Pearson)."""
    low, high = stats.binomtest(hits, n).proportion_ci()
    return f"{hits} of {n}: {100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare.selftest", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of each kind")
    trials = parser.parse_args(argv).trials
    found: dict[str, list[Verdict]] = {kind: [] for kind in RIGHT}
    pools = {"bench.compare.worker:ratrain_step": "plain", "bench.compare.selftest:slowed_step": "slow"}
    arms = {f"{name} {at}": {"make": make, "arguments": STEP} for make, name in pools.items() for at in range(POOL)}
    chance, began = random.Random(1), time.monotonic()
    with started(arms) as workers:
        every = list(workers.values())
        for number in range(1, trials + 1):
            for kind, one in trial(every[:POOL], every[POOL:], chance).items():
                found[kind].append(one)
                if one.word not in RIGHT[kind]:
                    span = f"{one.ratio:.4f} [{one.low:.4f}, {one.high:.4f}], {one.sets} sets"
                    print(f"trial {number}: {kind} processes are called {one.word}: {span}", file=sys.stderr)
            if number % 20 == 0:
                print(f"{number} trials, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return report(found)


def report(found: dict[str, list[Verdict]]) -> int:
    """Prints the shares of right and wrong verdicts; returns 1 if they are not as required."""
    equal, slow = found["equal"], found["slowed"]
    sets = statistics.fmean(max(one.sets, other.sets) for one, other in zip(equal, slow, strict=True))
    middles = [statistics.median(one.ratio for one in of) for of in (equal, slow)]
    alarms = sum(one.word in ("slower", "faster") for one in equal)
    caught = sum(one.word == "slower" for one in slow)
    print(f"{STEP['manifest']} at {STEP['scale']}, {ROUNDS} rounds a set, {sets:.1f} sets a trial")
    print(f"median ratio {middles[0]:.4f} of equal processes, {middles[1]:.4f} of slowed ones")
    print(f"a slowdown of {100 * SLOWDOWN:.0f} % is caught in {share_of(caught, len(slow))}")
    print(f"false alarms in {share_of(alarms, len(equal))}")
    return 0 if caught >= DETECTED * len(slow) and alarms <= ALARMS * len(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
