"""Measures the error rate of compare.py's verdict: real steps of real processes, one arm of which burns 5 % more.

Pools of workers stay alive, and every set of a trial draws its processes from them anew. The two kinds of trial share
their sets: the old tree and its twin against an equal process (a reported difference is a false alarm), and against a
slowed process (no reported difference is a miss). Sets have fewer rounds than compare.py's, whose verdicts err less.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare.verdict import MOST, NEW, OLD, SETS, TWIN, Change, Verdict, decide
from bench.compare.worker import Arm, Step, interleaved, ratrain_step

SLOWDOWN = 0.05
DETECTED, ALARMS = 0.95, 0.01  # required: detections at least, false alarms at most
ROUNDS = 8  # of a set
POOL = 8  # workers of each kind: with few, the differences between processes would bias the slowdown
SMALL = ["model.n_layer=1", "train.batch=1", "train.micro_batch=1"]  # of study scale: a step of some milliseconds


class Slowed:
    """A step followed by a busy wait of `share` times its CPU time."""

    def __init__(self, step: Step, share: float):
        self._step, self._share = step, share

    def __call__(self) -> None:
        start = time.process_time()
        self._step()
        took = time.process_time() - start
        while time.process_time() - start < (1 + self._share) * took:
            pass


def slowed_step(share: float, **arguments: Any) -> Step:
    """Makes a worker's ratrain_step with these arguments, slowed down by `share` of its CPU time."""
    return Slowed(ratrain_step(**arguments), share)


@dataclass
class Pools:
    """Equal workers, and slowed workers."""

    plain: list[Arm]
    slow: list[Arm]

    def trial(self, rounds: int, chance: random.Random) -> tuple[Verdict, Verdict]:
        """Returns the verdicts on an equal and on a slowed process."""
        sets: list[tuple[Change, Change]] = []

        def drawn(at: int) -> tuple[Change, Change]:
            while len(sets) <= at:
                old, twin, equal = chance.sample(self.plain, 3)
                arms = {OLD: old, TWIN: twin, "equal": equal, "slow": chance.choice(self.slow)}
                took = interleaved(arms, rounds)
                both = (Change.of({**took, NEW: took[name]}) for name in ("equal", "slow"))
                sets.append((*both,))  # pyright: ignore[reportArgumentType]
            return sets[at]

        found = []
        for kind in range(2):
            turn = iter(range(MOST))
            found.append(decide(lambda kind=kind, turn=turn: drawn(next(turn))[kind], least=SETS, most=MOST))
        return found[0], found[1]


@contextlib.contextmanager
def pools(plain: int, slow: int, arguments: dict[str, Any], source: Path | None = None):
    """Starts workers of a step with these arguments and waits until they are ready."""
    with contextlib.ExitStack() as opened:
        made = [("bench.compare.worker:ratrain_step", arguments)] * plain
        made += [("bench.compare.selftest:slowed_step", {"share": SLOWDOWN, **arguments})] * slow
        arms: list[Arm] = []
        for make, given in made:
            arms.append(opened.enter_context(Arm.start(make=make, arguments=given, source=source, wait=False)))
        for arm in arms:
            arm.ready()
        yield Pools(arms[:plain], arms[plain:])


def share_of(hits: int, n: int) -> str:
    """A share with its 95 % interval (Clopper-Pearson)."""
    from scipy import stats

    low = float(stats.beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return f"{hits} of {n}: {100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare.selftest", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of each kind")
    parser.add_argument("--variant", default="v9")
    parser.add_argument("--scale", default="study")
    parser.add_argument("--set", action="append", default=SMALL, metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in a set")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(argv)
    chance, began = random.Random(asked.seed), time.monotonic()
    arguments = {"manifest": asked.variant, "scale": asked.scale, "overrides": asked.set}
    alarms = caught = sets = 0
    ratios: list[tuple[float, float]] = []
    with pools(POOL, POOL, arguments) as pool:
        for number in range(1, asked.trials + 1):
            equal, slow = pool.trial(asked.rounds, chance)
            alarms += equal.word in ("slower", "faster")
            caught += slow.word == "slower"
            sets += max(equal.sets, slow.sets)
            ratios.append((equal.ratio, slow.ratio))
            for kind, found, right in (("equal", equal, "same"), ("slowed", slow, "slower")):
                if found.word != right:
                    span = f"{found.ratio:.4f} [{found.low:.4f}, {found.high:.4f}], {found.sets} sets"
                    print(f"trial {number}: {kind} processes are called {found.word}: {span}", file=sys.stderr)
            if number % 20 == 0:
                told = f"{number} trials, {time.monotonic() - began:.0f} s: caught {caught}, false alarms {alarms}"
                print(told, file=sys.stderr, flush=True)
    middles = [sorted(of)[len(of) // 2] for of in zip(*ratios, strict=True)]
    print(f"{asked.variant} at {asked.scale}, {asked.rounds} rounds a set, {sets / asked.trials:.1f} sets a trial")
    print(f"median ratio {middles[0]:.4f} of equal processes, {middles[1]:.4f} of slowed ones")
    print(f"a slowdown of {100 * SLOWDOWN:.0f} % is caught in {share_of(caught, asked.trials)}")
    print(f"false alarms in {share_of(alarms, asked.trials)}")
    return 0 if caught >= DETECTED * asked.trials and alarms <= ALARMS * asked.trials else 1


if __name__ == "__main__":
    sys.exit(main())
