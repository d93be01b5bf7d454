"""Studies whose truth is known: GPT-2 against itself, and against itself with more or fewer tokens.

`python tests/ablation/calibration.py train` trains the pool of runs at the tiny scale (9392 of them, about an hour on
two cores with `--jobs 2`; it goes on where it stopped) into trained.npz beside this file. `... report` resamples it
into studies, takes each through everything that a study goes through after its runs, and prints error rates, coverage
and power. The short form of the report is in the tests.

Arms without an effect differ from the baseline in chance alone, from close to far: one rounding (`ulp`), a soft cap too
high to matter (`cap`), another dropout mask, other initial position embeddings, another initial attention of one block,
other batches after half of the steps, other batches from the start, and other initial weights (the baseline of another
replicate). The standard deviations of their differences lie between 0.00003 and 0.03 nats.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.special import ndtr

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine
    from ratrain.model.gpt2 import GPT2

from ratrain.ablation.conclusion import Conclusion, conclude
from ratrain.ablation.record import Planned, PlannedArm, Study
from ratrain.ablation.results import Reached, Row
from ratrain.config.schema import Manifest
from ratrain.data.sampling import Sampler
from ratrain.events import Fingerprints
from ratrain.statistics.paired import Table, correlations, effects, within_documents
from ratrain.storage.run_log import RunLog

POOL = Path(__file__).parent / "trained.npz"
REPLICATES, SEEDS = 10, 40  # other initial weights; seeds of each, whose batches all replicates see alike
BUDGETS = (0.5, 0.7, 0.9, 1.01, 1.02, 1.05, 1.1, 1.2, 1.4, 2.0)  # of the baseline's tokens
RULER, PLANTED = (0.5, 0.7, 1.4, 2.0), (0.9, 1.01, 1.02, 1.05, 1.1, 1.2)
# arms that differ from the baseline in chance alone, from close to far, and how many of each a replicate has
NULLS = {"ulp": 1, "cap": 1, "mask": 2, "position": 2, "block": 2, "late": 2, "order": 2}
CLOSEST = ("ulp", "cap")
LRS = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
SHARED = 3e-3  # below the baseline's best, and so far below that of an arm with its best at twice the rate
TESTING, TUNING = range(1, 9), range(11, 19)  # seeds at each learning rate
STEPS, TOKENS, WINDOWS, DELTA = 100, 12_800, 32, 0.02


# -- the pool -----------------------------------------------------------------------------------------------------


def train(replicate: int, kind: str, draw: int = 0) -> np.ndarray:  # [S, K]
    """Returns the loss of every passage after runs of one kind with all seeds."""
    return np.array([_run(replicate, seed, kind, draw) for seed in range(1, SEEDS + 1)])


def train_at(lr: float) -> np.ndarray:  # [2, S + T, K]
    """Of two replicates at a learning rate, without dropout, the seeds that verdicts rest on and those that tune."""
    seeds, at = [*TESTING, *TUNING], {"schedule.lr": lr, "model.dropout": 0.0}
    return np.array([[_run(replicate, seed, "base", 0, at) for seed in seeds] for replicate in (0, 1)])


def _run(replicate: int, seed: int, kind: str, draw: int, changes: Mapping[str, float] | None = None):
    """Trains V0 with dropout, changed in one way: `kind` is base, a key of NULLS, or a part of the budget."""
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
    factor = float(kind) if kind[0].isdigit() else 1.0
    keys: dict[str, Any] = {
        "seed.init": 1000 * (replicate + 1) + seed, "seed.data": seed, "train.budget.steps": round(STEPS * factor),
        "model.dropout": 0.1, "eval.every": 0, "eval.windows": WINDOWS, "checkpoint.every": 0,
        "log.every": 2 * STEPS, "log.probes": "false", "compile.scope": "off", **(changes or {}),
    }  # fmt: skip
    keys |= {"seed.twin": "ulp"} if kind == "ulp" else {"patch.soft_cap.cap": 1e4} if kind == "cap" else {}
    other = 100_000 * (draw + 1) + keys["seed.init"]
    manifest, seen = _manifest(keys, "soft_cap" if kind == "cap" else "v0"), []
    with tempfile.TemporaryDirectory() as folder:
        engine = Bare(manifest, checkpoints=Path(folder), device=torch.device("cpu"), emit=seen.append)
        if kind == "mask":
            torch.manual_seed(other)
        elif kind in ("position", "block"):
            _redraw(engine.model, {**keys, "seed.init": other}, "pos." if kind == "position" else "blocks.0.attn.")
        elif kind in ("late", "order"):
            _reorder(engine, other, after=STEPS // 2 if kind == "late" else 0)
        engine.run()
    return next(event.parts for event in seen if isinstance(event, Evaluated))


def _manifest(keys: Mapping[str, Any], name: str = "v0") -> Manifest:
    from ratrain.config.read import find_manifest, read_source
    from ratrain.config.resolve import resolve
    from ratrain.registry import optim_kinds, patch_kinds

    source = read_source(find_manifest(name), scale="tiny", overrides=[f"{k}={v}" for k, v in keys.items()])
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def _redraw(model: GPT2, keys: Mapping[str, Any], prefix: str) -> None:
    """Takes the initial weights below `prefix` from other seeds."""
    import torch

    from ratrain.model.build import build

    own, others = model.state_dict(), build(_manifest(keys), device="cpu").state_dict()
    with torch.no_grad():
        for name in own:
            if name.startswith(prefix):
                own[name].copy_(others[name])


def _reorder(engine: Engine, seed: int, *, after: int) -> None:
    """Draws the batches after step `after` by another seed."""
    own, manifest = engine.setup.sampler, engine.manifest
    other = Sampler(
        engine.data.train, seed=seed, batch=manifest.train.batch, block_size=manifest.model.block_size,
        vocab_size=manifest.model.vocab_size,
    )  # fmt: skip
    drawn = own.batch
    own.batch = lambda step: other.batch(step) if step >= after else drawn(step)  # type: ignore[method-assign]


def make_pool(*, jobs: int, parts: Path) -> None:
    """Trains what is not in the folder `parts` yet, a file for each kind of a replicate; then joins them."""
    kinds = ["base", *(f"{kind}-{draw}" for kind, count in NULLS.items() for draw in range(count)), *map(str, BUDGETS)]
    names: dict[str, Any] = {}
    for replicate in range(REPLICATES):
        for name in kinds:
            kind, _, draw = name.partition("-")
            names[f"{name}-{replicate}"] = partial(train, replicate, kind, int(draw or 0))
    names |= {f"lr-{lr}": partial(train_at, lr) for lr in LRS}
    todo = {name: work for name, work in names.items() if not (parts / f"{name}.npy").exists()}
    parts.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_keep, todo.values(), [parts / f"{name}.npy" for name in todo]), 1):
            print(f"{done} of {len(todo)}", file=sys.stderr, flush=True)
    found = {kind: np.stack([np.load(parts / f"{kind}-{r}.npy") for r in range(REPLICATES)]) for kind in kinds}
    found |= {f"lr-{lr}": np.load(parts / f"lr-{lr}.npy") for lr in LRS}
    np.savez_compressed(POOL, **{name: runs.astype(np.float32) for name, runs in found.items()})


def _keep(work: partial, file: Path) -> None:
    """Whole or not at all."""
    aside = file.with_name(f".{file.name}")
    np.save(aside, work())
    aside.rename(file)


@lru_cache(maxsize=1)
def pool() -> dict[str, np.ndarray]:
    """By kind [R, S, K], and by learning rate, as `train` and `train_at` give them."""
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
    delta: float | None = DELTA,
) -> Conclusion:
    """Returns the conclusion of a study with stopping of these runs, the first arm being the baseline."""
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
    started = cast("Any", SimpleNamespace(environment={}))  # a study reads nothing else of how a run started
    log = RunLog(Path(), started, fingerprints=stated)
    reached = tuple(
        Reached(seed, seed, "", "done", float(run.mean()), log, tuple(run.tolist())) for seed, run in enumerate(runs)
    )
    return Row(arm, reached, tuple(0.0 for _ in reached))


@dataclass(frozen=True)
class Draw:
    """A study drawn from the pool: the runs of its arms, the true effects in nats, and the ruler's runs by budget."""

    runs: Seen
    truth: dict[str, float]
    ruler: dict[float, np.ndarray]


def _nulls() -> list[str]:
    return [f"{kind}-{draw}" for kind, count in NULLS.items() for draw in range(count)]


@lru_cache(maxsize=1)
def _offsets() -> tuple[float, ...]:
    """Returns the mean difference to the baseline over the pool of every arm without an effect, 0 for the closest."""
    runs = pool()
    return tuple(0.0 if n[:3] in CLOSEST else float((runs[n] - runs["base"]).mean()) for n in _nulls())


def drawn(rng: np.random.Generator, *, arms: int, seeds: int, variable: str = "none", planted: bool = False) -> Draw:
    """Draws a study: arms of kinds without an effect, with `planted` also one of each planted budget.

    Seeds are drawn without replacement, a replicate for each of them, and passages with replacement. An arm that
    differs in chance alone has no effect, so its mean over the pool is taken out: by chance the pool's own baseline is
    0.1 standard deviations of a difference better than its other runs. Of the closest kinds only few seeds differ by
    more than a rounding, so that the sign of each seed's difference is drawn instead. `variable` is the one four times
    as variable: none, an arm, or the base.
    """
    runs, seed, passages = pool(), rng.permutation(SEEDS)[:seeds], rng.integers(WINDOWS, size=WINDOWS)
    of_seed = np.argsort(rng.random((seeds, REPLICATES)), axis=1)  # [S, R], the replicates of a seed in drawn order

    def at(name: str, order: int = 0) -> np.ndarray:  # [S, K]
        return runs[name][of_seed[:, order], seed][:, passages]

    own = at("base")
    names = _nulls()
    differences = {f"init-{n}": at("base", n) - own for n in range(1, REPLICATES - 1)}
    differences |= {name: at(name) - own - offset for name, offset in zip(names, _offsets(), strict=True)}
    chosen = rng.choice(list(differences), arms, replace=False).tolist()
    signs = rng.choice([-1.0, 1.0], (seeds, 1))
    nulls = {name: differences[name] * (signs if name[:3] in CLOSEST else 1.0) for name in chosen}
    if variable == "arm":
        nulls[chosen[0]] = 4 * nulls[chosen[0]]
    base = own + (3 * (own - at("base", REPLICATES - 1)) if variable == "base" else 0.0)
    more = {f"x{factor:g}": at(str(factor)) for factor in PLANTED} if planted else {}
    return Draw(
        {"base": base} | {n: own + d for n, d in nulls.items()} | more,
        dict.fromkeys(nulls, 0.0) | {name: float((runs[str(float(name[1:]))] - runs["base"]).mean()) for name in more},
        {factor: at(str(factor)) for factor in RULER},
    )


# -- how often they say what is not so ----------------------------------------------------------------------------


def false_claims(
    studies: int, *, effect: float = 0.0, arms: int = 20, seeds: int = 5, variable: str = "none", start: int = 0
) -> float:
    """Returns the share of studies with any false claim, of arms whose only difference from the baseline is `effect`,
    beyond chance: better or worse at 0, equivalent at delta."""
    wrong = ("better", "worse") if not effect else ("equivalent", "better" if effect > 0 else "worse")
    rng, claimed = np.random.default_rng(start), 0
    for _ in range(studies):
        runs = drawn(rng, arms=arms, seeds=seeds, variable=variable).runs
        runs = {name: of + (effect if name != "base" else 0.0) for name, of in runs.items()}
        claimed += bool({verdict.word for verdict in studied(runs).judgement.verdicts} & set(wrong))
    return claimed / studies


def power(studies: int, *, arms: int = 20, seeds: int = 3) -> dict[str, tuple[float, float]]:
    """Returns by kind of arm the effect that studies state to be the smallest detectable, on average, and the share of
    arms with it that are called better."""
    stated: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    for _ in range(studies):
        for verdict in studied(drawn(rng, arms=arms, seeds=seeds).runs, delta=None).judgement.verdicts:
            stated.setdefault(verdict.arm.partition("-")[0], []).append(verdict.detectable)
    effects, called = {kind: float(np.mean(of)) for kind, of in stated.items()}, dict.fromkeys(stated, (0, 0))
    rng = np.random.default_rng(1)
    for _ in range(studies):
        runs = drawn(rng, arms=arms, seeds=seeds).runs
        shifted = {n: of - effects[n.partition("-")[0]] if n != "base" else of for n, of in runs.items()}
        for verdict in studied(shifted, delta=None).judgement.verdicts:
            kind = verdict.arm.partition("-")[0]
            right, count = called[kind]
            called[kind] = right + (verdict.word == "better"), count + 1
    return {kind: (effects[kind], right / count) for kind, (right, count) in called.items() if count}


def coverage(studies: int, *, arms: int = 14, seeds: int = 5) -> tuple[float, dict[str, tuple[float, float]]]:
    """Returns how often an interval of 95 % for one arm holds its effect in nats, over all arms; and by planted budget
    how often that of the effect holds, and how often the ruler's interval holds the budget."""
    rng, held = np.random.default_rng(1), []
    by_budget: dict[str, list[tuple[bool, bool]]] = {f"x{factor:g}": [] for factor in PLANTED}
    for _ in range(studies):
        draw = drawn(rng, arms=arms, seeds=seeds, planted=True)
        found = studied(draw.runs, ruler=draw.ruler)
        for v in found.judgement.verdicts:
            holds = v.pointwise[0] <= draw.truth[v.arm] <= v.pointwise[1]
            held.append(holds)
            if v.arm in by_budget:
                low, high = found.worth[v.arm].tokens.interval if v.arm in found.worth else (None, None)
                gain = float(v.arm[1:]) - 1
                by_budget[v.arm].append((holds, (low is None or low <= gain) and (high is None or gain <= high)))
    return float(np.mean(held)), {arm: tuple(np.mean(of, 0).tolist()) for arm, of in by_budget.items()}  # type: ignore[misc]


def families(studies: int, *, arms: int = 14, seeds: int = 5) -> dict[str, tuple[float, float]]:
    """Compares rules for many arms at one look, of studies with arms without an effect and arms of every planted
    budget: the share of studies that call any of the former better or worse, and of the latter that are called so.

    The multivariate t is a Gaussian copula with the correlations that documents show; closed testing steps down with
    it.
    """
    rng, wrong, right = np.random.default_rng(2), Counter(), Counter()
    for _ in range(studies):
        runs = drawn(rng, arms=arms, seeds=seeds, planted=True).runs
        parts = {name: [tuple(run) for run in of.tolist()] for name, of in runs.items()}
        losses = {name: of.mean(1).tolist() for name, of in runs.items()}
        table = Table.of(losses, "base", parts, (32,) * WINDOWS)
        found = effects(table)
        p = np.array([e.spread.tail(e.value) if e.spread else 1.0 for e in found])
        z = rng.multivariate_normal(np.zeros(len(p)), correlations(within_documents(table)), 2000, method="eigh")
        null = 2 * ndtr(-np.abs(z))  # [M, A]
        for rule, called in _called(p, null).items():
            names = {e.arm for e, yes in zip(found, called, strict=True) if yes}
            wrong[rule] += any(not name.startswith("x") for name in names)
            right[rule] += sum(name.startswith("x") for name in names)
    return {rule: (wrong[rule] / studies, right[rule] / studies / len(PLANTED)) for rule in right}


def _called(p: np.ndarray, null: np.ndarray, alpha: float = 0.05) -> dict[str, np.ndarray]:
    """Returns by rule the arms that are called different from the baseline; `null` are p-values without effects."""
    order, arms = np.argsort(p), len(p)
    holm, closed = np.zeros(arms, bool), np.zeros(arms, bool)
    for step, arm in enumerate(order):
        if p[arm] > alpha / (arms - step):
            break
        holm[arm] = True
    for step, arm in enumerate(order):
        if p[arm] > np.quantile(null[:, order[step:]].min(1), alpha):
            break
        closed[arm] = True
    rules = {"Bonferroni": p <= alpha / arms, "Holm": holm}
    return rules | {"multivariate t": p <= np.quantile(null.min(1), alpha), "closed testing": closed}


def moved_learning_rate() -> tuple[str, str, dict[str, dict[str, Any]]]:
    """Returns the verdicts, at the shared rate and as tuned, on an arm that is the baseline but for an optimum at twice
    the learning rate: its losses at a rate are those of the baseline at half of it; and the tuned rates."""
    runs, names = {lr: pool()[f"lr-{lr}"] for lr in LRS}, ("base", "moved")
    test, tune = slice(0, len(TESTING)), slice(len(TESTING), None)
    grids = {name: {lr: runs[lr / (k + 1)][k] for lr in LRS[1:]} for k, name in enumerate(names)}
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
    count = sum(NULLS.values()) + REPLICATES - 2
    yield f"{REPLICATES} replicates, {SEEDS} seeds, {count} arms without an effect; {studies} studies of 20 arms"
    for arms, times in ((1, 10), (5, 2), (20, 1)):  # small studies are quick
        for variable in ("none", "arm", "base"):
            share = false_claims(times * studies, arms=arms, variable=variable)
            yield f"any false claim, no effects, {arms} arms, four times as variable: {variable}: {share:.3f}"
        share = false_claims(times * studies, arms=arms, effect=DELTA)
        yield f"any false claim, all effects at delta = {DELTA:g}, {arms} arms: {share:.3f}"
        found = power(times * studies // 3, arms=arms)
        mean = np.mean([share for _, share in found.values()])
        yield f"power at the smallest detectable effect of 3 seeds, {arms} arms: {mean:.3f}"
        yield from (f"  {kind}: {effect:.5f} nats, {share:.3f}" for kind, (effect, share) in found.items())
    every, budgets = coverage(studies // 3)
    yield f"intervals of 95 % hold the effect: {every:.3f} of all arms"
    for arm, (holds, ruler) in budgets.items():
        yield f"  {arm} tokens: {holds:.3f}, on the ruler {ruler:.3f}"
    for rule, (wrong, right) in families(studies // 3).items():
        yield f"{rule}: {wrong:.3f} of studies with a false claim, {right:.3f} of planted arms called"
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
