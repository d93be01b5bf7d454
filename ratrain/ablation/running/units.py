"""The runs of a study by number: each is one idempotent command, `ratrain --ablate FILE --run K`."""

from __future__ import annotations

from ratrain.ablation.arms import Task
from ratrain.ablation.plan import Plan
from ratrain.ablation.record import Study
from ratrain.ablation.results import rows_of
from ratrain.ablation.tuning import tuning
from ratrain.errors import UsageError


def runs_of(plan: Plan, study: Study) -> list[Task]:
    """Returns every run that the study may come to need, in an order that does not change while it goes on.

    Arms that are declared the same share their runs. Arms at their tuned points come last, once they are known.
    """
    tasks = list(plan.tasks(plan.arms))
    if plan.study.tune and (found := tuning(study, rows_of(study))):
        tasks += plan.tasks(plan.tuned(found.best))
    first: dict[str, Task] = {}
    for task in tasks:
        first.setdefault(task.folder, task)
    return list(first.values())


def run_of(plan: Plan, study: Study, number: int) -> Task:
    """Returns the run of this number, from 1. Raises UsageError if the study has fewer."""
    runs = runs_of(plan, study)
    if not 1 <= number <= len(runs):
        raise UsageError(f"--run {number}: {plan.name} has runs 1 to {len(runs)}")
    return runs[number - 1]
