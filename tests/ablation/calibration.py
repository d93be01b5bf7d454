"""Studies whose truth is known: GPT-2 against itself, and against itself with more or fewer tokens.

`python tests/ablation/calibration.py train` trains the pool of runs at the tiny scale (4892 of them, 45 minutes on one
core, `--jobs` divides it; it goes on where it stopped) into trained.npz beside this file; `... report` resamples it
into studies, takes each through everything that a study goes through after its runs, and prints how often it says what
is not so. The short form of the report is in the tests.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np

from ratrain.ablation.conclusion import Conclusion, conclude
from ratrain.ablation.record import Planned, PlannedArm, Study
from ratrain.ablation.results import Reached, Row
from ratrain.events import Fingerprints
from ratrain.storage.run_log import RunLog

POOL = Path(__file__).parent / "trained.npz"
NULLS, PLANTED, SEEDS = 240, 100, 5  # replicates of GPT-2; of those, with other budgets; seeds of each
FACTORS = (0.5, 0.7, 0.9, 1.05, 1.2, 1.4, 2.0)  # of the budget
SOUGHT = (0.9, 1.05, 1.2)  # that the ruler is to read back from the others
LRS = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
SHARED = 1.2e-2  # the largest of these at which the baseline is at its best
TESTING, TUNING = range(1, 9), range(11, 19)  # seeds at each learning rate
STEPS, TOKENS, DELTA = 100, 12_800, 0.02


# -- the pool -----------------------------------------------------------------------------------------------------


def train(replicates: Sequence[int], *, factor: float) -> np.ndarray:  # [R, S, K]
    """The loss of every passage after runs of V0: replicates differ in their initial weights, seeds in the batches,
    which all replicates see alike."""
    steps = {"train.budget.steps": round(STEPS * factor)}
    return np.array([[_run(replicate, seed, steps) for seed in range(1, SEEDS + 1)] for replicate in replicates])


def train_at(lr: float) -> np.ndarray:  # [2, S + T, K]
    """Of two replicates at a learning rate, the seeds that verdicts rest on and then those that tune."""
    seeds, at = [*TESTING, *TUNING], {"schedule.lr": lr}
    return np.array([[_run(replicate, seed, at) for seed in seeds] for replicate in (0, 1)])


def _run(replicate: int, seed: int, changes: dict[str, float]) -> tuple[float, ...]:
    import torch

    from ratrain.config.read import find_manifest, read_source
    from ratrain.config.resolve import resolve
    from ratrain.engine.engine import Engine
    from ratrain.events import Evaluated
    from ratrain.registry import optim_kinds, patch_kinds

    class Bare(Engine):
        """What comes after the last step of a run is not needed here."""

        def _sample(self) -> None:
            pass

        def _save(self, *, may_fail: bool = False) -> None:
            pass

    torch.set_num_threads(1)
    keys = {
        "seed.init": 1000 * (replicate + 1) + seed, "seed.data": seed, "train.budget.steps": STEPS, "eval.every": 0,
        "checkpoint.every": 0, "log.every": 2 * STEPS, "log.probes": "false", "compile.scope": "off", **changes,
    }  # fmt: skip
    source = read_source(find_manifest("v0"), scale="tiny", overrides=[f"{k}={v}" for k, v in keys.items()])
    manifest, seen = resolve(source, patches=patch_kinds(), optimizers=optim_kinds()), []
    with tempfile.TemporaryDirectory() as folder:
        Bare(manifest, checkpoints=Path(folder), device=torch.device("cpu"), emit=seen.append).run()
    return next(event.parts for event in seen if isinstance(event, Evaluated))


def make_pool(*, jobs: int, parts: Path) -> None:
    """Trains what is not in the folder `parts` yet, a file for ten replicates of a budget; then joins them."""
    budgets = [(1.0, at) for at in range(0, NULLS, 10)]
    budgets += [(factor, at) for factor in FACTORS for at in range(0, PLANTED, 10)]
    names = {f"{factor}-{at}": partial(train, range(at, at + 10), factor=factor) for factor, at in budgets}
    names |= {f"lr-{lr}": partial(train_at, lr) for lr in LRS}
    todo = {name: work for name, work in names.items() if not (parts / f"{name}.npy").exists()}
    parts.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_keep, todo.values(), [parts / f"{name}.npy" for name in todo]), 1):
            print(f"{done} of {len(todo)}", file=sys.stderr, flush=True)
    found = {
        str(factor): np.concatenate([np.load(parts / f"{f}-{at}.npy") for f, at in budgets if f == factor])
        for factor in (1.0, *FACTORS)
    }
    found |= {f"lr-{lr}": np.load(parts / f"lr-{lr}.npy") for lr in LRS}
    np.savez_compressed(POOL, **{name: runs.astype(np.float32) for name, runs in found.items()})


def _keep(work: partial, file: Path) -> None:
    """Whole or not at all."""
    aside = file.with_name(f".{file.name}")
    np.save(aside, work())
    aside.rename(file)


@lru_cache(maxsize=1)
def pool() -> dict[str, np.ndarray]:
    """By factor of the budget [R, S, K], and by learning rate, as `train` and `train_at` give them."""
    with np.load(POOL) as file:
        return {name: file[name].astype(float) for name in file.files}


# -- studies of it ------------------------------------------------------------------------------------------------


Seen = dict[str, np.ndarray]  # by arm: [S, K], the losses of its runs by passage


def studied(
    arms: Seen,
    *,
    ruler: Mapping[float, np.ndarray] | None = None,
    tuning: Mapping[str, Mapping[float, np.ndarray]] | None = None,
    tuned: Seen | None = None,
    delta: float = DELTA,
) -> Conclusion:
    """What a study with stopping comes to whose runs these are, the first arm being the baseline."""
    base = next(iter(arms))
    rows = [_row(_arm(name, "base" if name == base else "arm"), runs) for name, runs in arms.items()]
    for factor, runs in (ruler or {}).items():
        rows.append(_row(_arm(f"{base} x{factor}", "ruler", tokens=round(TOKENS * factor)), runs))
    for name, points in (tuning or {}).items():
        rows += [_row(_arm(f"{name} {lr}", "tuning", of=name, point={"lr": lr}), runs) for lr, runs in points.items()]
    rows += [_row(_arm(f"{name} tuned", "tuned", of=name), runs) for name, runs in (tuned or {}).items()]
    seeds = len(arms[base])
    rule = {"delta": delta, "alpha": 0.05, "spending": "obrien_fleming", "stop": True}
    plan = Planned(
        "x", "", "", "tiny", "tokens", {"last": 1}, rule, None, tuple((s, s) for s in range(seeds)),
        tuple(row.arm for row in rows if row.arm.role != "tuned"), "x",
    )  # fmt: skip
    found = conclude(Study(Path(), plan, plan), rows)
    assert found
    return found


def _arm(name: str, role: Any, *, of: str = "", point: dict | None = None, tokens: int = 0) -> PlannedArm:
    return PlannedArm(name, role, of, "", point or {}, name, "", None, "none", 1, 1, 1, tokens or TOKENS, (), ())


def _row(arm: PlannedArm, runs: np.ndarray) -> Row:
    sizes = (32,) * runs.shape[1]  # a passage is a context of the tiny scale
    stated = Fingerprints(data="", order="", windows="", weights={}, unit="passage", sizes=sizes)
    log = RunLog(Path(), cast("Any", None), fingerprints=stated)  # a study reads nothing of how a run started
    reached = tuple(
        Reached(seed, seed, "", "done", float(run.mean()), log, tuple(run.tolist())) for seed, run in enumerate(runs)
    )
    return Row(arm, reached, tuple(0.0 for _ in reached))


# -- how often they say what is not so ----------------------------------------------------------------------------


def false_claims(studies: int, *, effect: float = 0.0, arms: int = 20) -> float:
    """The share of studies of arms that differ from the baseline by `effect`, and otherwise in chance alone, that
    claim of any what is not so: better or worse at 0, equivalent at delta."""
    wrong = ("better", "worse") if not effect else ("equivalent", "better" if effect > 0 else "worse")
    return float(np.mean([bool(_words(found) & set(wrong)) for found in _null_studies(studies, effect, arms)]))


def power(studies: int, *, arms: int = 20) -> tuple[float, float]:
    """The effect that studies state to be the smallest detectable, on average, and the share of arms with it that are
    called better."""
    effect = float(np.mean([found.detectable for found in _null_studies(studies, 0.0, arms)]))
    words = [v.word for found in _null_studies(studies, -effect, arms) for v in found.judgement.verdicts]
    return effect, words.count("better") / len(words)


def _null_studies(studies: int, effect: float, arms: int) -> Iterator[Conclusion]:
    nulls, rng = pool()["1.0"], np.random.default_rng(0)
    for _ in range(studies):
        chosen = nulls[rng.choice(len(nulls), arms + 1, replace=False)][:, rng.permutation(SEEDS)]
        chosen[1:] += effect
        yield studied({f"a{n}": runs for n, runs in enumerate(chosen)})


def _words(found: Conclusion) -> set[str]:
    return {verdict.word for verdict in found.judgement.verdicts}


def coverage(studies: int) -> dict[float, float]:
    """By factor of the tokens that an arm had: how often the ruler's interval for it holds that factor."""
    runs, rng, held = pool(), np.random.default_rng(1), {factor: [] for factor in SOUGHT}
    for _ in range(studies):
        base, *others = rng.choice(PLANTED, 1 + len(SOUGHT), replace=False)
        order = rng.permutation(SEEDS)
        arms = {"base": runs["1.0"][base][order]}
        arms |= {str(factor): runs[str(factor)][other][order] for factor, other in zip(SOUGHT, others, strict=True)}
        nulls = rng.choice(np.arange(PLANTED, NULLS), 10, replace=False)  # with the noise of a study's other arms
        arms |= {f"a{n}": runs["1.0"][n][order] for n in nulls}
        found = studied(arms, ruler={f: runs[str(f)][base][order] for f in FACTORS if f not in SOUGHT})
        for factor in SOUGHT:
            low, high = found.worth[str(factor)].tokens.interval
            held[factor].append((low is None or low <= factor - 1) and (high is None or factor - 1 <= high))
    return {factor: float(np.mean(of)) for factor, of in held.items()}


def moved_learning_rate() -> tuple[str, str, dict[str, dict[str, Any]]]:
    """The verdicts, at the shared rate and as tuned, on an arm that is the baseline but for an optimum at half the
    learning rate: what it does at a rate is what the baseline does at twice that."""
    runs, names = {lr: pool()[f"lr-{lr}"] for lr in LRS}, ("base", "moved")
    test, tune = slice(0, len(TESTING)), slice(len(TESTING), None)
    grids = {name: {lr: runs[lr * (k + 1)][k] for lr in LRS[:-1]} for k, name in enumerate(names)}
    tuning = {name: {lr: of[tune] for lr, of in grid.items()} for name, grid in grids.items()}
    shared = {name: grids[name][SHARED][test] for name in names}
    first = studied(shared, tuning=tuning).tuned
    assert first
    best = {name: point["lr"] for name, point in first.best.items()}
    own = {name: grids[name][best[name]][test] for name in names}
    found = studied(shared, tuning=tuning, tuned=own, delta=0.05)
    assert found.tuned
    assert found.tuned.judgement
    return found.judgement["moved"].word, found.tuned.judgement["moved"].word, found.tuned.best


def report(studies: int) -> Iterator[str]:
    yield f"{NULLS} null arms, {SEEDS} seeds; {studies} studies of 20 arms, looks after 3, 4 and 5 seeds"
    yield f"any false claim, no effects: {false_claims(studies):.3f}"
    yield f"any false claim, all effects at delta = {DELTA:g}: {false_claims(studies, effect=DELTA):.3f}"
    effect, found = power(studies)
    yield f"power at the smallest detectable effect, {effect:.4f} nats: {found:.3f}"
    for factor, share in coverage(studies).items():
        yield f"x {factor} tokens: the ruler's interval holds it in {share:.3f}"
    shared, tuned, best = moved_learning_rate()
    yield f"optimum moved: {shared} at the shared rate, {tuned} as tuned; best: {best}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train the pool")
    training.add_argument("--jobs", type=int, default=1)
    training.add_argument("--parts", type=Path, default=Path("runs/calibration"))
    training.set_defaults(act=lambda args: make_pool(jobs=args.jobs, parts=args.parts))
    telling = commands.add_parser("report", help="resample it")
    telling.add_argument("--studies", type=int, default=2000)
    telling.set_defaults(act=lambda args: [print(line, flush=True) for line in report(args.studies)])
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    main()
