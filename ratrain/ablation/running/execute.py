"""Executes a study: tuning runs, every arm with every seed, arms at their tuned points, then step costs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ratrain.ablation.arms import Arm, Task
from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import conclude, judged
from ratrain.ablation.looks import Look
from ratrain.ablation.plan import Plan
from ratrain.ablation.preflight import preflight
from ratrain.ablation.record import (
    PlannedArm,
    Study,
    planned,
    read_study,
    record_budget,
    record_costs,
    record_look,
    record_tuned,
    refuse_other,
    settle,
)
from ratrain.ablation.results import rows_of
from ratrain.ablation.running.costs import step_costs
from ratrain.ablation.running.guarding import Guards
from ratrain.ablation.running.pool import Began, Ended, Pool, Published
from ratrain.ablation.running.seeds_as_needed import MOST, Purse, look, next_block
from ratrain.ablation.tuning import tuning
from ratrain.errors import CannotCreateError, Exit, Fault, ManifestError, RatrainError, UsageError
from ratrain.events import Evaluated
from ratrain.lock import lock
from ratrain.run.start import Launch, changed_code
from ratrain.storage.code_digests import some
from ratrain.storage.folder import RunFolder

Message = Began | Published | Ended
_QUIET = (Exit.DONE, Exit.DIVERGED, Exit.PREEMPTED)  # divergence is a result, and the table shows it


def study_folder(plan: Plan, out: Path) -> Path:
    return out / "studies" / plan.name


@contextmanager
def held(folder: Path, *, wait: float | None = 0.0) -> Iterator[None]:
    """Holds the lock of a study's folder, for which it waits so many seconds, without limit for None.

    Raises CannotCreateError if the folder cannot be created or another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = lock(folder / "study.lock", wait=wait)
    except BlockingIOError:
        raise CannotCreateError(f"{folder}: another process works on this study; wait for it") from None
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be created: {error.strerror}; choose another --out") from error
    try:
        yield
    finally:
        if list(folder.iterdir()) == [folder / "study.lock"]:  # the plan was refused: leave nothing behind
            (folder / "study.lock").unlink()
            folder.rmdir()
        os.close(descriptor)


def set_aside(folder: Path) -> None:
    """Moves the folder of a study aside for a fresh one. Raises CannotCreateError if a process works on it."""
    if folder.exists():
        with held(folder):
            pass
        RunFolder(folder).move_aside()


def begin(plan: Plan, out: Path, *, amend: bool, checked: Sequence[str] = ()) -> Study:
    """Returns the recorded study; a new or amended plan is recorded after preflight, with the checks that were made
    before (`checked`). Raises ManifestError."""
    folder, made = study_folder(plan, out), planned(plan)
    refuse_other(made, folder, amend=amend)
    if (folder / "events.jsonl").exists() and read_study(folder).now.hash == made.hash:
        return _extended(read_study(folder), plan)
    return settle(made, folder, checked=(*checked, *preflight(plan)))


def begun(plan: Plan, out: Path) -> Study:
    """Returns the study with this plan; one without a record is begun, by the first of the processes that ask."""
    folder, made = study_folder(plan, out), planned(plan)
    if (folder / "events.jsonl").exists() and (study := read_study(folder)).now.hash == made.hash:
        return study
    with held(folder, wait=None):
        return begin(plan, out, amend=False)


def _extended(study: Study, plan: Plan) -> Study:
    """Records the plan's budget if it is larger than the study's last; a smaller one changes nothing. Raises UsageError
    for a budget of another resource, and for one where there was none or the reverse."""
    new, old = plan.study.budget or "", study.budgets[-1][0] if study.budgets else ""
    if not study.plan.first_look:
        return study
    before, after = (StudyBudget.of(text) if text else None for text in (old, new))
    if before == after or (before and after and before.resource == after.resource and after.amount < before.amount):
        return study
    if before is None or after is None or before.resource != after.resource:
        begun = f"{study.folder.name} was begun with {old or 'none'}"
        advice = "--fresh moves it aside, a larger budget of the same kind extends it"
        raise UsageError(f"budget {new or 'none'}: {begun}; {advice}")
    return record_budget(study, new)


def _told(found: Look, study: Study, budget: StudyBudget | None) -> str:
    """Formats a look as a line."""
    verdicts = judged(study, rows_of(study)).verdicts
    parts = [f"look after {found.seeds} seeds: {sum(v.stops for v in verdicts)} of {len(verdicts)} arms decided"]
    if budget:
        parts.append(f"{budget.text(found.spent)} of {budget.text(budget.amount)} spent")
    if found.dropped:
        parts.append(f"given up: {', '.join(found.dropped)}")
    return "; ".join([*parts, *([found.over] if found.over else [])])


def done_runs(plan: Plan, tasks: Sequence[Task], launch: Launch) -> dict[str, float]:
    """Returns the final loss of every run that is done or diverged (NaN), by folder. Raises ManifestError if the code
    changed since a run was trained, unless `launch` accepts the change."""
    manifests, done, changed = {arm.name: arm.manifest for arm in plan.arms}, {}, {}
    for task in tasks:
        folder = RunFolder(launch.out / task.folder)
        state = folder.read_state()
        diverged = state.get("status") == "diverged"
        if diverged or (state.get("status") == "done" and isinstance(state.get("loss"), float)):
            done[task.folder] = math.nan if diverged else state["loss"]
            manifest = manifests.get(task.arm) or task.manifest()
            changed |= dict.fromkeys(changed_code(folder, manifest), task.folder)
    if changed and not launch.accept_code_change:
        folder = next(iter(changed.values()))
        message = f"changed since {folder} was trained; --fresh trains all anew, --accept-code-change takes it as it is"
        raise ManifestError([Fault(some(list(changed)), "", message)])
    return done


class Runner(Protocol):
    """Runs tasks to their end, or until it is asked to stop."""

    asked: bool

    def run(self, tasks: Sequence[Task]) -> None: ...


@dataclass
class Execution:
    """Runs the unfinished part of a study.

    `on_message` receives every message of the pool. `announce` receives the name of a stage, its runs, and the losses
    of its finished runs by folder. `say` receives a line per measured step cost.
    """

    plan: Plan
    study: Study
    launch: Launch
    devices: Sequence[str]
    on_message: Callable[[Message], None]
    announce: Callable[[str, Sequence[Task], Mapping[str, float]], None]
    say: Callable[[str], None]
    pool: Callable[..., Runner] = Pool  # takes launch, devices and the receiver of messages
    guards: Guards | None = None
    failed: list[int] = field(default_factory=list)
    asked: bool = False
    _ran: dict[str, float] = field(default_factory=dict)  # under --fresh: losses of this execution's runs, by folder
    _purse: Purse | None = None
    _began: dict[str, float] = field(default_factory=dict)  # times by folder

    def run(self, *, costs: bool) -> int:
        """Runs all stages and returns the exit code: PREEMPTED after a stop, else that of the first failed run."""
        stages = (self._tune, self._test, self._test_tuned, *((self._measure,) if costs else ()), self._guard)
        for stage in stages:
            stage()
            if self.asked:
                return Exit.PREEMPTED
        return next(iter(self.failed), Exit.DONE)

    def _tune(self) -> None:
        self._pool("tuning", self.plan.tasks(self._asked("tuning")))

    def _test(self) -> None:
        """Runs all seeds in one pool. With `verdict.stop` it runs seed by seed, and only arms without a verdict, the
        baseline and the ruler. With seeds as needed it runs block by block."""
        if self.plan.study.seed.as_needed:
            self._test_as_needed()
            return
        arms = self._asked("base", "arm", "control", "ruler")
        if not self.plan.study.verdict.stop:
            self._pool("", self.plan.tasks(arms))
            return
        running, always = {arm.name for arm in arms}, {arm.name for arm in arms if arm.role == "ruler"}
        for pair in self.plan.seeds:
            block = [task for task in self.plan.tasks(arms) if (task.init, task.data) == pair and task.arm in running]
            self._pool("", block)
            found = conclude(self.study)
            if self.asked:
                return
            if found and found.judgement.looks:
                still = set(found.judgement.open)
                running = always | ({self.plan.base.name} | still if still else set())

    def _test_as_needed(self) -> None:
        """Runs block by block until the study is over, then the ruler, so that verdicts do not wait for it.

        A block with a run that failed or was stopped gets no look: the same command tries it again.
        """
        begun = self.study.budgets[-1][0]
        budget = StudyBudget.of(begun) if begun else None
        spent = self.study.looks[-1].spent if self.study.looks else 0.0
        purse = self._purse = Purse(budget, spent, len(self.devices), self._kept_back(budget))
        arms = {arm.name: arm for arm in self.plan.arms}
        self._charge(purse)
        while block := next_block(self.study, rows_of(self.study), len(self.devices), purse):
            chosen = [self.plan.base, *(arms[name] for name in block.arms)]
            runs = [(arm, at) for at in range(block.seeds) for arm in chosen if at < len(arm.seeds)]
            self._pool("", [arm.task(*arm.seeds[at], self.plan.patches, thin=self._thin) for arm, at in runs])
            rows = [row for row in rows_of(self.study, block) if row.arm.role != "ruler"]
            whole = all(run.ended for row in rows for run in row.runs[: self.study.seeds_of(row.arm.name, block)])
            if self.asked or self.failed or not whole:
                return
            known = {arm.name: arm for arm in self.study.now.arms}
            have = {arm.name: self.study.seeds_of(arm.name) if self.study.looks else 0 for arm in chosen}
            purse.pay({known[a.name].folders[at]: known[a.name] for a, at in runs if at >= have[a.name]})
            found = look(self.study, rows, block, purse)
            self.study = record_look(self.study, found)
            self.say(_told(found, self.study, budget))
        self._pool("ruler", self.plan.tasks(self._asked("ruler")))

    def _kept_back(self, budget: StudyBudget | None) -> list[PlannedArm]:
        """Returns the ruler's arms with the folders of the runs that the budget has to pay for: those that are not done
        yet, and all if it counts tokens."""
        ruler = self.study.plan.of_role("ruler")
        if budget and budget.resource == "tokens":
            return ruler
        done = done_runs(self.plan, list(self.plan.tasks(self._asked("ruler"))), self.launch)
        return [replace(arm, folders=tuple(folder for folder in arm.folders if folder not in done)) for arm in ruler]

    def _charge(self, purse: Purse) -> None:
        """Counts the runs of the block under way that ended before the study was stopped or killed."""
        begun = self.study.looks[-1].seeds if self.study.looks else 0
        end, counted = begun + MOST if begun else self.study.plan.first_look, set()
        for arm in self.study.plan.of_role("base", "arm", "control"):
            for folder in arm.folders[begun:end]:
                if folder in counted:  # twins share their runs
                    continue
                counted.add(folder)
                files = [self.study.out / folder / name for name in ("code.json", "summary.json")]
                if all(file.exists() for file in files):
                    start, ended = (file.stat().st_mtime for file in files)
                    if ended > self.study.since:
                        purse.ran(arm, max(0.0, ended - start), earlier=True)

    @property
    def _thin(self) -> bool:
        return self.plan.study.keep == "weights"

    def _test_tuned(self) -> None:
        if not self.plan.study.tune:
            return
        found = tuning(self.study, rows_of(self.study))
        arms = self.plan.tuned(found.best if found else {})
        self.study = record_tuned(self.study, arms)
        self._pool("tuned", self.plan.tasks(arms))

    def _measure(self) -> None:
        """Measures step costs, once for each arm with a finished run."""
        rows = [row for row in rows_of(self.study) if row.losses and row.arm.role in ("base", "arm", "control")]
        names = [row.arm.name for row in rows if row.arm.name not in self.study.costs]
        if not names or len(rows) < 2:
            return
        found, machine = {}, ""
        arms = {arm.name: arm for arm in self.plan.arms}
        chosen = [self.plan.base, *(arms[name] for name in names if name != self.plan.base.name)]
        tasks = [arm.task(*arm.seeds[0], self.plan.patches) for arm in chosen]
        try:
            for measured in step_costs(tasks, device=self.devices[0]):
                found[measured.arm], machine = measured.cost, measured.machine
                low, high = measured.cost.interval
                self.say(f"step of {measured.arm}: {measured.cost.ratio:.3f} [{low:.3f}, {high:.3f}] of the baseline's")
        except KeyboardInterrupt:  # verdicts are on record, and the report comes
            self.asked = True
        if found:
            self.study = record_costs(self.study, found, machine)

    def _guard(self) -> None:
        """Scores finished runs on downstream tasks. A task that cannot be had by now costs its scores alone."""
        if not self.plan.study.guard or self.guards is None:
            return
        try:
            self.study = self.guards.score(self.study, rows_of(self.study), device=self.devices[0], say=self.say)
            self.failed += self.guards.failed
        except KeyboardInterrupt:
            self.asked = True
        except RatrainError as error:
            self.say(f"guards: {error}")
            self.failed.append(error.exit)

    def _asked(self, *roles: Any) -> list[Arm]:
        return [arm for arm in self.plan.of_role(*roles) if arm.name in self.plan.asked]

    def _pool(self, stage: str, tasks: Iterator[Task] | list[Task]) -> None:
        tasks = list(tasks)
        done = self._ran if self.launch.fresh else done_runs(self.plan, tasks, self.launch)
        # arms that are declared the same share their runs
        left = list({task.folder: task for task in tasks if task.folder not in done}.values())
        self.announce(stage, tasks, {task.folder: done[task.folder] for task in tasks if task.folder in done})
        if not left:
            return
        pool = self.pool(self.launch, self.devices, self._on_message)
        pool.run(left)
        self.asked = pool.asked

    def _on_message(self, message: Message) -> None:
        self.on_message(message)
        if isinstance(message, Published) and isinstance(message.event, Evaluated) and self.launch.fresh:
            self._ran[message.task.folder] = message.event.loss
        if isinstance(message, Began):
            self._began[message.task.folder] = time.monotonic()
        if isinstance(message, Ended) and self._purse:
            arm = next(arm for arm in self.study.now.arms if arm.name == message.task.arm)
            own = time.monotonic() - self._began[message.task.folder]
            self._purse.ran(arm, own if message.seconds is None else message.seconds)
        if isinstance(message, Ended) and message.code == Exit.DIVERGED and self.launch.fresh:
            self._ran[message.task.folder] = math.nan
        if isinstance(message, Ended) and message.code not in _QUIET:
            self.failed.append(message.code)
