"""Scores the finished runs of a study on its guards; each run keeps its scores, so that a kill costs one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.ablation.guards import GUARDED
from ratrain.ablation.plan import Plan
from ratrain.ablation.record import GuardedTask, Study, read_study, record_guards
from ratrain.ablation.results import Row
from ratrain.errors import Fault, ManifestError, RatrainError
from ratrain.storage.task_log import read_scores, weights_of

if TYPE_CHECKING:
    from ratrain.tasks.source import OpenTask


class Guards:
    """The guards of a plan. Their tasks are loaded when they are first needed."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self.failed: list[int] = []  # exit codes of runs that could not be scored

    @cached_property
    def tasks(self) -> list[tuple[GuardedTask, OpenTask]]:
        """The tasks with the metric of each. Raises UnavailableError, MissingError or DataError for a task that cannot
        be had, ManifestError for a metric that it lacks or that is no mean over documents."""
        from ratrain.tasks.source import open_tasks

        found = []
        for word in self._plan.study.guard:
            name, _, metric = word.partition(":")
            for task in open_tasks([name], beside=self._plan.folder):
                found.append((GuardedTask(word, task.name, self._metric(task, metric, word), task.digest), task))
        return found

    def _metric(self, task: OpenTask, asked: str, word: str) -> str:
        from ratrain.tasks.harness import additive

        metrics = task.task.aggregation()
        fitting = [name for name, aggregation in metrics.items() if additive(aggregation)]
        if asked and asked not in metrics:
            message = f"the metrics of {task.name} are {', '.join(metrics)}"
        elif not (fitting if not asked else asked in fitting):
            message = f"{asked or task.name}: a guard needs a mean, a perplexity or bits per byte over documents"
        else:
            return asked or next(iter(fitting))
        raise ManifestError([Fault(self._plan.file, f"guard: {word}", message)])

    def require(self, folder: Path) -> None:
        """Loads the tasks before the plan is on record, so that a task that cannot be had is refused before any run."""
        if self._plan.study.guard and not ((folder / "events.jsonl").exists() and self._is_of(read_study(folder))):
            self.tasks  # noqa: B018 - a cached property

    def described(self) -> list[str]:
        """Returns a line for each task, with its metric and documents."""
        return [f"{one.task}, {one.metric}, {opened.documents:,} documents" for one, opened in self.tasks]

    def _is_of(self, study: Study) -> bool:
        return {task.word for task in study.guarded} == {*self._plan.study.guard}

    def recorded(self, study: Study) -> Study:
        """Records the tasks of a study that has none on record, or other ones."""
        return study if not self._plan.study.guard or self._is_of(study) else self._record(study)

    def _record(self, study: Study) -> Study:
        return record_guards(study, [task for task, _ in self.tasks])

    def score(self, study: Study, rows: Sequence[Row], *, device: str, say: Callable[[str], None]) -> Study:
        """Scores every finished run that has no score of its weights on a guard; returns the study as recorded then."""
        from ratrain.tasks.harness import score_run

        if study.guarded and not any(self._lacking(study, row, study.guarded) for row in rows):
            return study
        study = self._record(study)
        opened = {(task.task, task.digest): found for task, found in self.tasks}
        left = {folder: of for row in rows for folder, of in self._lacking(study, row, study.guarded).items()}
        for folder, lacking in left.items():
            try:
                scored = score_run(study.out / folder, [opened[key] for key in lacking], device=device, warn=say)
            except RatrainError as error:  # the other runs have their scores nevertheless
                say(f"guards of {folder}: {error}")
                self.failed.append(error.exit)
                continue
            told = ", ".join(f"{one.task} {next(iter(one.scores.values())).value:.4f}" for one in scored if one.scores)
            say(f"guards of {folder}: {told or 'no value'}")
        return study

    @staticmethod
    def _lacking(study: Study, row: Row, tasks: Sequence[GuardedTask]) -> dict[str, list[tuple[str, str]]]:
        """Returns by run of a compared arm the tasks, with their digests, on which its newest weights have no score."""
        found: dict[str, list[tuple[str, str]]] = {}
        for run in row.runs if row.arm.role in GUARDED else ():
            weights = weights_of(study.out / run.folder) if run.status == "done" else None
            if weights is None:
                continue
            known = {(one.task, one.digest) for one in read_scores(study.out / run.folder) if one.weights == weights[1]}
            lacking = [key for key in dict.fromkeys((task.task, task.digest) for task in tasks) if key not in known]
            found |= {run.folder: lacking} if lacking else {}
        return found
