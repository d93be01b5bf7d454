"""The Python interface: the commands as functions. Every name in `__all__` is also an attribute of `ratrain`.

    import ratrain

    run = ratrain.train("v9", scale="tiny")          # trains, or returns the run that is done already
    print(run.evaluated[-1].loss)                     # nats per token
    model = ratrain.load(run.path).model              # in eval mode, with its newest weights
    found = ratrain.study("ablation_kv.toml", scale="tiny")
    print(found.verdicts, found.page)

The command line runs the same code. The functions raise RatrainError; its message names the place, the fault and the
remedy, and `error.exit` is the exit code of the command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ratrain.config.read import Source, find_manifest, located, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.contracts import SMALL
from ratrain.contracts.meaning import require_meaning
from ratrain.contracts.verify import Verdict
from ratrain.contracts.verify import verify as check_contracts
from ratrain.data.tokenizer import tokenizer_of
from ratrain.errors import Fault, ManifestError
from ratrain.events import Emit, Event, Sampled, Window
from ratrain.machine.device import pick_device
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import Mechanism
from ratrain.model.parametrisation import from_itself
from ratrain.registry import Patch, optim_kinds, patch_kinds, register
from ratrain.run.launch import train as train_manifest
from ratrain.run.sample import load_run
from ratrain.run.start import AlreadyDone, Launch
from ratrain.sinks.progress import describe
from ratrain.storage.folder import find_run
from ratrain.storage.run_log import RunLog
from ratrain.storage.run_log import read_run as _read_run

if TYPE_CHECKING:
    import tiktoken

    from ratrain.ablation.conclusion import Conclusion
    from ratrain.ablation.ladder.climb import Climbed
    from ratrain.ablation.ladder.conclusion import Outlook
    from ratrain.ablation.ladder.plan import LadderPlan, Rung
    from ratrain.ablation.plan import Plan
    from ratrain.ablation.record import Study
    from ratrain.ablation.results import Row
    from ratrain.ablation.running.board import Board, LineBoard, Standing
    from ratrain.ablation.running.execute import Runner
    from ratrain.data.recall.symbols import Symbols
    from ratrain.statistics.verdict import Verdict as StudyVerdict

Pathlike = str | PathLike[str]

__all__ = [
    "LadderRun",
    "Loaded",
    "Mechanism",
    "Patch",
    "Resolved",
    "RunLog",
    "StudyRun",
    "Verdict",
    "ladder",
    "load",
    "read_manifest",
    "read_plan",
    "read_run",
    "register",
    "resume",
    "study",
    "train",
    "try_ideas",
    "verify",
]


@dataclass(frozen=True)
class Resolved:
    """A manifest with every key set, and the files and overrides that set them."""

    manifest: Manifest
    source: Source


@dataclass(frozen=True)
class StudyRun:
    """A study after its runs: the record, a row per arm, and the conclusion, None before two seeds are done.

    `path` is the study's folder, `page` its report. `exit` is DONE, or the exit code of the first run that failed, or
    PREEMPTED after a stop signal.
    """

    path: Path
    page: Path
    study: Study
    rows: Sequence[Row]
    conclusion: Conclusion | None
    exit: int

    @property
    def verdicts(self) -> dict[str, StudyVerdict]:
        """The verdict on each arm by its name; an effect is in nats per token."""
        return {found.arm: found for found in self.conclusion.judgement.verdicts} if self.conclusion else {}


@dataclass(frozen=True)
class LadderRun:
    """A ladder after its runs: its folder, its report, and the rungs with their conclusion (`climbed`)."""

    path: Path
    page: Path
    climbed: Climbed

    @property
    def exit(self) -> int:
        """DONE, or the exit code of the first rung that failed or was stopped."""
        return self.climbed.exit

    @property
    def outlooks(self) -> dict[str, Outlook]:
        """The trend of each arm by its name; gains are logarithms of factors on the baseline's tokens."""
        return self.climbed.conclusion.outlooks if self.climbed.conclusion else {}


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, its manifest, and its tokenizer."""

    model: GPT2
    manifest: Manifest
    tokenizer: tiktoken.Encoding | Symbols


def read_manifest(
    name: Pathlike,
    *,
    base: Pathlike | None = None,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    patches: Sequence[Pathlike] = (),
) -> Resolved:
    """Reads and resolves the manifest with the id, file name or path `name`.

    `overrides` are keys in the form of `--set` ("schedule.lr=3e-4"), `patches` are folders of mechanisms. Raises
    ManifestError with every fault, and MissingError.
    """
    seeds = [] if seed is None else [f"seed.init={seed}", f"seed.data={seed}"]
    stands_on = None if base is None else find_manifest(str(base))
    source = read_source(find_manifest(str(name)), base=stands_on, scale=scale, overrides=[*seeds, *overrides])
    kinds = patch_kinds([Path(folder) for folder in patches], beside=source.files)
    return Resolved(resolve(source, patches=kinds, optimizers=optim_kinds()), source)


def train(
    manifest: Pathlike | Resolved,
    *,
    base: Pathlike | None = None,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    device: str = "auto",
    resume: str = "auto",
    fresh: bool = False,
    accept_code_change: bool = False,
    on_event: Emit | None = None,
) -> RunLog:
    """Trains a manifest below the folder `out`, and resumes an earlier run of it.

    A finished run is returned as it is. `on_event` receives every event; by default all events but windows of steps
    and samples are printed. `resume` is "auto", "must" or "never"; `fresh` moves an earlier run aside. Raises
    PreemptedError after a stop signal, DivergedError, ManifestError also for a patch from outside the package that sees
    later tokens, and other RatrainErrors.
    """
    if not isinstance(manifest, Resolved):
        manifest = read_manifest(manifest, base=base, scale=scale, overrides=overrides, seed=seed, patches=patches)
    launch = Launch(Path(out), device, resume, fresh, accept_code_change)
    require_meaning(manifest.manifest, manifest.source)
    try:
        folder = train_manifest(manifest.manifest, manifest.source, launch, sink=on_event or print_event)
    except AlreadyDone as done:
        folder = done.path
    except ManifestError as error:
        raise located(error, manifest.source) from error
    return _read_run(folder)


def read_plan(
    file: Pathlike,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    budget: str | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    device: str = "auto",
    fresh: bool = False,
) -> Plan:
    """Reads an ablation manifest, by path or the name of a shipped one, and resolves every arm; trains nothing.

    The plan's `arms` hold manifests and costs. Step times of a study with `match = "seconds"` are read below `out` or
    measured on `device`. Raises ManifestError with the faults of every arm.
    """
    from ratrain.ablation.manifest import find_ablation
    from ratrain.ablation.plan import make_plan
    from ratrain.ablation.running.costs import recorded_costs

    return make_plan(
        find_ablation(str(file)), scale=scale, overrides=overrides, only=only, budget=budget,
        seeds=None if seeds is None else [(seed, seed) for seed in seeds], patches=[Path(one) for one in patches],
        costs=partial(recorded_costs, Path(out), device=device, fresh=fresh),
    )  # fmt: skip


def study(
    file: Pathlike | Plan,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    budget: str | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    device: str = "auto",
    jobs: int | None = None,
    memory: float | None = None,
    fresh: bool = False,
    amend: bool = False,
    accept_code_change: bool = False,
    costs: bool = True,
    board: Callable[[Standing], Board | LineBoard] | None = None,
    pool: Callable[..., Runner] | None = None,
    devices: Sequence[str] | None = None,
) -> StudyRun:
    """Runs the study of an ablation manifest, as far as it is not done, and writes its report.

    `jobs` is the number of concurrent runs, one per GPU or core by default, or as many as fit if a run takes `memory`
    GiB. `only` names arms, with patterns. `costs` measures the step of every arm. By default a line is printed for
    each run that ends; `board` shows progress otherwise; `pool` runs the runs elsewhere than in processes of this
    machine, on `devices`, one for each that runs at a time. The other arguments are options of `ratrain --ablate`.

    Runs are processes that import the calling script: call this below `if __name__ == "__main__":`, or in a notebook.
    """
    from ratrain.ablation.plan import Plan
    from ratrain.ablation.running.execute import set_aside, study_folder

    plan = file if isinstance(file, Plan) else read_plan(
        file, scale=scale, overrides=overrides, seeds=seeds, budget=budget, only=only, patches=patches, out=out,
        device=device, fresh=fresh,
    )  # fmt: skip
    if fresh:
        set_aside(study_folder(plan, Path(out)))
    launch = Launch(Path(out), fresh=fresh, accept_code_change=accept_code_change)
    return _carry_out(
        plan, launch, device, jobs, memory, amend=amend, costs=costs, board=board, pool=pool, devices=devices
    )


def ladder(
    file: Pathlike | LadderPlan,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    fresh: bool = False,
    run: Callable[[Rung], StudyRun] | None = None,
    **options: Any,
) -> LadderRun:
    """Runs the ladder of a manifest: a study at every rung, as far as it is not done, and the trend over the rungs.

    `options` are those of `study`; step costs are measured at the last rung alone. `run` carries out one rung instead.
    Raises the errors of `study`, and ManifestError for a ladder of other arms or rungs than the one on record.
    """
    from ratrain.ablation.ladder.climb import climb
    from ratrain.ablation.ladder.manifest import find_ladder
    from ratrain.ablation.ladder.plan import LadderPlan, make_ladder
    from ratrain.ablation.running.costs import recorded_costs
    from ratrain.report.ladder.write import write_ladder_report

    plan = file if isinstance(file, LadderPlan) else make_ladder(
        find_ladder(str(file)), overrides=overrides, only=only, patches=[Path(one) for one in patches],
        seeds=None if seeds is None else [(seed, seed) for seed in seeds],
        costs=partial(recorded_costs, Path(out), device=options.get("device", "auto"), fresh=fresh),
    )  # fmt: skip

    def carry_out(rung: Rung) -> StudyRun:
        costs = options.get("costs", True) and rung is plan.rungs[-1]
        return study(rung.plan, out=out, fresh=fresh, **{**options, "costs": costs})

    found = climb(plan, Path(out), run or carry_out, write_ladder_report, fresh=fresh)
    return LadderRun(found.ladder.folder, write_ladder_report(found), found)


def try_ideas(
    *ideas: Pathlike,
    base: Pathlike = "v0",
    scale: str = "study",
    budget: str | None = None,
    delta: float = 0.01,
    after: str | None = None,
    overrides: Sequence[str] = (),
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    device: str = "auto",
    jobs: int | None = None,
    memory: float | None = None,
    fresh: bool = False,
    accept_code_change: bool = False,
    board: Callable[[Standing], Board | LineBoard] | None = None,
    on_contract: Callable[[str, Verdict], None] | None = None,
) -> StudyRun:
    """Takes manifests from files to verdicts: every contract, twins, controls, seeds as needed, and costs.

    `base` is the baseline, `budget` what the runs may spend ("30m", "2 gpu-h", "40 Mtokens"; by default that on record,
    or 15 minutes), `delta` the difference in nats that does not matter. Ideas tried together are one family. `after`
    names an earlier study of the same search, so that the chance of any false claim in the whole search stays at 0.05.
    The same call again resumes; a larger budget extends. `on_contract` receives the name of an idea and each verdict of
    `verify`.

    Raises ManifestError for an idea that breaks a contract, equals another or the baseline, or changes initial values.
    """
    from ratrain.ablation.record import read_study
    from ratrain.ablation.running.execute import begin, held, set_aside, study_folder
    from ratrain.ablation.search import ledger
    from ratrain.ablation.trial import in_search, trial_plan

    root, folders = Path(out), [Path(one) for one in patches]
    plan = trial_plan(
        [str(idea) for idea in ideas], base=str(base), scale=scale, budget=budget, delta=delta, overrides=overrides,
        patches=folders,
    )  # fmt: skip
    folder = study_folder(plan, root)
    if fresh or not (folder / "events.jsonl").exists():
        for idea in dict.fromkeys(map(str, ideas)):
            _require_contracts(idea, overrides, folders, on_contract or (lambda name, verdict: None))
    with ledger(root / "studies", plan.base.recipe) as book:
        entry = book.next(plan.name, len(plan.of_role("arm")), after=after)
        plan = in_search(plan, entry)
        if fresh:
            set_aside(folder)
        if budget is None and (folder / "events.jsonl").exists():
            plan = replace(plan, study=plan.study.model_copy(update={"budget": read_study(folder).budgets[-1][0]}))
        new = entry not in book.entries
        book.add(entry)  # before the plan is on record, so that no plan is without its entry
        try:
            with held(folder):
                begin(plan, root, amend=False, checked=("every contract of `ratrain verify`, for every idea",))
        except ManifestError:
            if new:
                book.remove(entry)
            raise
    launch = Launch(root, fresh=fresh, accept_code_change=accept_code_change)
    return _carry_out(plan, launch, device, jobs, memory, board=board)


def _require_contracts(
    idea: str,
    overrides: Sequence[str],
    patches: Sequence[Path],
    on_contract: Callable[[str, Verdict], None],
) -> None:
    """Checks every contract of an idea. Raises ManifestError with those that are broken."""
    broken = []
    for verdict in verify(idea, overrides=overrides, patches=patches):
        on_contract(idea, verdict)
        if verdict.fault is not None:
            broken.append(Fault(idea, "", f"does not hold: {verdict.claim}: {' '.join(verdict.fault.split())}"))
    if broken:
        raise ManifestError(broken)


def _carry_out(
    plan: Plan,
    launch: Launch,
    device: str,
    jobs: int | None,
    memory: float | None,
    *,
    amend: bool = False,
    costs: bool = True,
    board: Callable[[Standing], Board | LineBoard] | None,
    pool: Callable[..., Runner] | None = None,
    devices: Sequence[str] | None = None,
) -> StudyRun:
    """Runs what is left of a plan and writes the report."""
    from ratrain.ablation.conclusion import conclude
    from ratrain.ablation.results import rows_of
    from ratrain.ablation.running.board import LineBoard, Standing  # with scipy, which other functions do not need
    from ratrain.ablation.running.execute import Execution, begin, held, study_folder
    from ratrain.ablation.running.guarding import Guards
    from ratrain.ablation.running.pool import Pool, run_devices
    from ratrain.report.study.write import write_study_report

    devices = devices or run_devices(device, jobs, memory)
    folder, standing, guards = study_folder(plan, launch.out), Standing(plan), Guards(plan)
    with held(folder):
        guards.require(folder)
        record = guards.recorded(begin(plan, launch.out, amend=amend))
        show = board(standing) if board else LineBoard(standing, sys.stdout)
        execution = Execution(plan, record, launch, devices, show, standing.add, show.say, pool or Pool, guards)
        try:
            code = execution.run(costs=costs)
        finally:
            show.close()
        rows = rows_of(execution.study)
        found = conclude(execution.study, rows)
        page = write_study_report(execution.study, rows, found)
    return StudyRun(folder, page, execution.study, rows, found, code)


def resume(run: Pathlike, *, out: Pathlike = "runs", device: str = "auto", on_event: Emit | None = None) -> RunLog:
    """Resumes a stopped run with the manifest in its folder; a finished run is returned as it is."""
    folder = find_run(str(run), Path(out))
    resolved = read_manifest(folder / "resolved.toml")
    return train(resolved, out=folder.parents[1], device=device, resume="must", on_event=on_event)


def read_run(run: Pathlike, *, out: Pathlike = "runs") -> RunLog:
    """Reads the events of a run, given by folder, name below `out`, id, or "@last"."""
    return _read_run(find_run(str(run), Path(out)))


def load(
    name: Pathlike,
    *,
    out: Pathlike = "runs",
    device: str = "cpu",
    scale: str | None = None,
    overrides: Sequence[str] = (),
) -> Loaded:
    """Loads the model of a run with its newest weights that verify, or builds that of a manifest, untrained.

    A path of a run folder and "@last" name runs; every other name is read as that of a manifest.
    """
    place, text = pick_device(device), str(name)
    if text.startswith("@") or (Path(text) / "resolved.toml").exists():
        manifest, model = load_run(find_run(text, Path(out)), device=place, warn=print)
    else:
        manifest = read_manifest(name, scale=scale, overrides=overrides).manifest
        torch.manual_seed(0)
        model = build(manifest, device=place).eval()
    return Loaded(model, manifest, tokenizer_of(manifest.data))


def verify(
    name: Pathlike, *, base: Pathlike | None = None, overrides: Sequence[str] = (), patches: Sequence[Pathlike] = ()
) -> Iterator[Verdict]:
    """Checks every contract on a small version of a manifest; yields each verdict when it is reached.

    A contract holds if the `fault` of its verdict is None.
    """
    own = read_manifest(name, base=base, overrides=overrides, patches=patches).manifest
    small = read_manifest(name, base=base, scale="tiny", overrides=[*SMALL, *overrides], patches=patches)
    compiled = {"compile": own.compile}  # the small scale sets one of its own
    manifest = from_itself(small.manifest.model_copy(update=compiled))
    try:
        yield from check_contracts(manifest, block_size=own.model.block_size)
    except ManifestError as error:
        raise located(error, small.source) from error


def print_event(event: Event) -> None:
    """Prints the lines of every event but windows of steps and samples: a handful per run, suitable for a notebook."""
    if not isinstance(event, (Window, Sampled)):
        for line in describe(event):
            print(line)
