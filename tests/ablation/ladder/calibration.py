"""Ladders of known truth: GPT-2 on the rungs of ladder_tiny.toml, against itself and itself with more tokens.

`python tests/ablation/ladder/calibration.py train` trains the pool of runs (about three hours of one core, which
`--jobs 2` halves; it goes on where it stopped) into trained.npz beside this file. `... report` resamples it into
ladders of the shipped size, takes each through everything that a ladder goes through after its runs, and prints how
often the interval for the held-out rung holds it, and how often each arm gets which word.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ratrain.ablation.ladder.conclusion import LadderConclusion, conclude_ladder
from ratrain.ablation.ladder.plan import make_ladder
from ratrain.ablation.ladder.readings import RungLosses
from ratrain.config.parse import Layer
from ratrain.config.schema import Manifest
from ratrain.statistics.budget_curve import BudgetCurve
from ratrain.statistics.paired import Table

POOL, LADDER = Path(__file__).parent / "trained.npz", "ladder_tiny.toml"
SEEDS = (16, 14, 10, 8)  # of each kind in the pool, by rung
DRAWN = (8, 6, 5, 4)  # of each kind in a ladder: as the shipped one has them
BUDGETS = ("0.7", "1.4", "1.05", "1.1", "1.2", "1.3")
NULLS = ("ulp", "order", "cap")
# the learning rate of an arm that was tuned at the smallest rung and not transferred: it stays too high for wider ones
MISTUNED = (1.0, 3**0.5, 6**0.5, 12**0.5)
KINDS = ("base", *BUDGETS, *NULLS, "mistuned")
# the kind that each arm of a drawn ladder has at each rung; a second kind of noise, where its truth is that of the base
ARMS = {
    "ulp": ("ulp",) * 4,
    "order": ("order",) * 4,
    "cap": ("cap",) * 4,
    "1.05": ("1.05",) * 4,
    "1.2": ("1.2",) * 4,
    "shrinking": ("1.3", "1.2", "1.1", "order"),
    "growing": ("order", "1.1", "1.2", "1.3"),
    "mistuned": ("mistuned",) * 4,
}
SHRINKS = ("gain shrinks", "gain vanishes", "gain turns")


# -- the pool -----------------------------------------------------------------------------------------------------


def manifest(rung: int, kind: str, seed: int) -> Manifest:
    """Returns the manifest of a run at a rung, counted from 0."""
    from ratrain.ablation.arms import resolved

    base = _bases()[rung]
    own: dict[str, Any] = {"log": {"every": 10_000, "probes": False}}
    if kind in BUDGETS:
        per_step = base.manifest.train.batch * base.manifest.model.block_size
        steps = round((base.tokens or 0) * float(kind) / per_step)
        own["train"] = {"budget": {"tokens": steps * per_step}}
    elif kind in ("ulp", "order"):
        own["seed"] = {"twin": kind}
    elif kind == "cap":
        own["patch"] = {"soft_cap": {"cap": 1e4}}  # too high to matter
    elif kind == "mistuned":
        own["schedule"] = {"lr": base.manifest.schedule.lr * MISTUNED[rung]}
    source = base.source_of(seed, seed, Layer("calibration", own))
    return resolved(source, ())


@lru_cache(maxsize=1)
def _bases() -> list[Any]:
    from ratrain.ablation.ladder.manifest import find_ladder

    return [rung.plan.base for rung in make_ladder(find_ladder(LADDER)).rungs]


def train(rung: int, kind: str, seed: int) -> np.ndarray:  # [K]
    """Returns the loss of every passage after a run."""
    import torch

    from ratrain.engine.engine import Engine
    from ratrain.events import Evaluated

    class Bare(Engine):
        """What comes after the last step of a run is not needed here."""

        def _sample(self) -> None:
            pass

        def _save(self, *, may_fail: bool = False) -> None:
            pass

    torch.set_num_threads(1)
    seen: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        of = manifest(rung, kind, seed)
        Bare(of, checkpoints=Path(folder), device=torch.device("cpu"), emit=seen.append).run()
    return np.array(next(event.parts for event in reversed(seen) if isinstance(event, Evaluated)))


def make_pool(*, jobs: int, parts: Path) -> None:
    """Trains what is not in the folder `parts` yet, a file for each run; then joins them."""
    runs = [(rung, kind, seed) for rung in reversed(range(4)) for seed in range(1, SEEDS[rung] + 1) for kind in KINDS]
    left = [run for run in runs if not _file(parts, *run).exists()]
    parts.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_keep, [parts] * len(left), left), 1):
            print(f"{done} of {len(left)}", file=sys.stderr, flush=True)
    join(parts)


def join(parts: Path) -> None:
    """Writes the pool with the seeds that all kinds of a rung have."""
    found = {}
    for rung in range(4):
        whole = [s for s in range(1, SEEDS[rung] + 1) if all(_file(parts, rung, kind, s).exists() for kind in KINDS)]
        for kind in KINDS:
            runs = [np.load(_file(parts, rung, kind, seed)) for seed in whole]
            found[f"{rung}/{kind}"] = np.array(runs, np.float32)
    np.savez_compressed(POOL, **found)


def _file(parts: Path, rung: int, kind: str, seed: int) -> Path:
    return parts / f"{rung}-{kind}-{seed}.npy"


def _keep(parts: Path, run: tuple[int, str, int]) -> None:
    """Whole or not at all."""
    file = _file(parts, *run)
    aside = file.with_name(f".{file.name}")
    np.save(aside, train(*run))
    aside.rename(file)


@lru_cache(maxsize=1)
def trained() -> list[dict[str, np.ndarray]]:
    """By rung and kind [S, K], as `train` gives them."""
    with np.load(POOL) as file:
        return [{kind: file[f"{rung}/{kind}"].astype(float) for kind in KINDS} for rung in range(4)]


@lru_cache(maxsize=1)
def curves() -> list[BudgetCurve]:
    """The baseline's curve at every rung, from all of its budgets."""
    budgets = {1.0: "base", **{float(budget): budget for budget in BUDGETS}}
    return [
        BudgetCurve.of({b: dict(enumerate(of[k].mean(1).tolist())) for b, k in budgets.items()}) for of in trained()
    ]


@lru_cache(maxsize=1)
def pool() -> list[dict[str, np.ndarray]]:
    """By rung and kind [S, K]: the trained losses, moved so that the mean of each kind is its truth.

    The mean of a pool is not exact either. So a kind that differs from the baseline in chance alone gets the mean of
    the baseline, and one of other budgets gets that of `curves`.
    """
    return [{kind: runs + _moved(at, kind) for kind, runs in of.items()} for at, of in enumerate(trained())]


def _moved(rung: int, kind: str) -> float:
    """Returns the nats by which the mean of a kind is moved."""
    of = trained()[rung]
    measured = float((of[kind] - of["base"]).mean())
    if kind in BUDGETS:
        return float(curves()[rung].loss(np.log(float(kind)))) - measured
    return -measured if kind in NULLS else 0.0


# -- ladders of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A ladder drawn from the pool, and the true log gain of every arm at every rung."""

    rungs: list[RungLosses]
    truth: dict[str, list[float]]


def drawn(rng: np.random.Generator, arms: Mapping[str, tuple[str, ...]]) -> Drawn:
    """Draws seeds without replacement and passages with replacement, the same passages at every rung."""
    passages = rng.integers(0, pool()[0]["base"].shape[1], pool()[0]["base"].shape[1])
    found = []
    for at, of in enumerate(pool()):
        seeds = rng.choice(len(of["base"]), DRAWN[at], replace=False)
        runs = {kind: _of_many(of[kind], seeds)[:, passages] for kind in KINDS}
        losses = {"v0": runs["base"], **{name: runs[kinds[at]] for name, kinds in arms.items()}}
        table = Table.of(
            {name: list(of.mean(1)) for name, of in losses.items()}, "v0",
            {name: [tuple(run) for run in of] for name, of in losses.items()}, (1,) * len(passages),
        )  # fmt: skip
        budgets = {b: dict(enumerate(runs[k].mean(1).tolist())) for b, k in ((1.0, "base"), (0.7, "0.7"), (1.4, "1.4"))}
        found.append(RungLosses(at + 1, _bases_flops()[at], table, budgets, windows="pool"))
    truth = {name: [_true_gain(at, kind) for at, kind in enumerate(kinds)] for name, kinds in arms.items()}
    return Drawn(found, truth)


def _of_many(runs: np.ndarray, seeds: np.ndarray) -> np.ndarray:  # [S, K]
    """Returns the runs of these seeds as if they were drawn from many, not from a pool of N.

    The mean of n of N varies by 1 - n / N times the variance of a mean of n; it is stretched to that.
    """
    mean, of = runs[seeds].mean(0), runs.mean(0)
    return runs[seeds] - mean + of + (mean - of) / np.sqrt(1 - len(seeds) / len(runs))


def _true_gain(rung: int, kind: str) -> float:
    """Returns the log of the tokens; NaN for a kind whose truth is not known by construction."""
    return float(np.log(float(kind))) if kind in BUDGETS else 0.0 if kind in NULLS else np.nan


@lru_cache(maxsize=1)
def _bases_flops() -> list[float]:
    from ratrain.ablation.ladder.manifest import find_ladder

    return [rung.flops for rung in make_ladder(find_ladder(LADDER)).rungs]


@dataclass
class Outcome:
    """Over many ladders, by arm: the words, and whether intervals held the measured and the true gain."""

    words: dict[str, Counter] = field(default_factory=dict)
    held_out: dict[str, list[bool]] = field(default_factory=dict)  # the measured last rung, predicted from the others
    true: dict[str, list[bool]] = field(default_factory=dict)  # the last rung's true gain, in the 95 % interval there
    ladders: int = 0

    def add(self, found: LadderConclusion, truth: Mapping[str, list[float]]) -> None:
        self.ladders += 1
        for name in truth:
            outlook = found.outlooks.get(name)
            self.words.setdefault(name, Counter())[outlook.word if outlook else "no trend"] += 1
            if outlook and outlook.held_out:
                self.held_out.setdefault(name, []).append(outlook.held_out.inside)
            if outlook and np.isfinite(truth[name][-1]):
                low, high = outlook.trend.measured_rung(-1).interval(0.05)
                self.true.setdefault(name, []).append(low <= truth[name][-1] <= high)


def outcomes(ladders: int, *, seed: int = 0, arms: Mapping[str, tuple[str, ...]] = ARMS) -> Outcome:
    """Concludes from so many drawn ladders."""
    rng, found = np.random.default_rng(seed), Outcome()
    for _ in range(ladders):
        of = drawn(rng, arms)
        found.add(conclude_ladder(of.rungs, alpha=0.05, delta=0.01), of.truth)
    return found


def said(found: Outcome, name: str, *words: str) -> float:
    """Returns the share of ladders whose word for an arm begins with one of these."""
    return sum(count for word, count in found.words[name].items() if word.startswith(words)) / found.ladders


def lines(found: Outcome) -> Iterator[str]:
    every = [inside for of in found.held_out.values() for inside in of]
    yield f"{found.ladders} ladders; held-out rungs inside their 90 % interval: {np.mean(every):.1%}"
    for name, words in found.words.items():
        held, true = found.held_out.get(name, []), found.true.get(name, [])
        shares = ", ".join(f"{word} {count / found.ladders:.1%}" for word, count in words.most_common())
        yield f"  {name}: held out {np.mean(held or [np.nan]):.1%}, truth {np.mean(true or [np.nan]):.1%}; {shares}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("train", "join", "report"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--ladders", type=int, default=1000)
    parser.add_argument("--parts", type=Path, default=Path("build/ladder-pool"), help="folder of runs that are done")
    args = parser.parse_args()
    if args.command == "train":
        make_pool(jobs=args.jobs, parts=args.parts)
    elif args.command == "join":
        join(args.parts)
    else:
        print("\n".join(lines(outcomes(args.ladders))))


if __name__ == "__main__":
    main()
