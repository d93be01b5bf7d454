"""Guards of a study: scores of its runs on downstream tasks, beside the verdicts and without a say in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratrain.ablation.record import GuardedTask, Study
from ratrain.ablation.results import Reached, Row
from ratrain.events import Score
from ratrain.statistics.noise import COVERAGE
from ratrain.statistics.paired import Effect, Table, effects
from ratrain.tasks.compare import level, unit_of

GUARDED = ("base", "arm", "control")  # roles of the arms whose runs are scored


@dataclass(frozen=True)
class Guard:
    """An arm on a downstream task against the baseline: above zero is better, whatever the metric's own direction.

    `value` and `base` are means over the arm's runs and the baseline's. `effect` is the mean of the differences over
    `pairs` seeds, of logarithms for perplexities. `interval` (95 %, of this comparison alone) is over seeds and
    documents; not finite with one pair.
    """

    task: str
    metric: str
    arm: str
    value: float
    base: float
    effect: float
    interval: tuple[float, float]
    pairs: int
    documents: int
    unit: str

    @property
    def falls(self) -> bool:
        """Whether the interval lies wholly below zero."""
        return self.interval[1] < 0


def score_of(run: Reached, task: GuardedTask) -> Score | None:
    """Returns the newest score of a finished run on a task as the study resolved it; None without one."""
    if run.status != "done" or run.log is None:
        return None
    found = [one.scores for one in run.log.tasks if (one.task, one.digest) == (task.task, task.digest)]
    scores = found[-1] if found else {}
    return next((score for name, score in scores.items() if name.split(", ")[0] == task.metric), None)


def guards_of(study: Study, rows: Sequence[Row]) -> tuple[Guard, ...]:
    """Compares every arm with the baseline on each guard, on the runs that have scores."""
    return tuple(guard for task in study.guarded for guard in _of_task(task, rows))


def _of_task(task: GuardedTask, rows: Sequence[Row]) -> Iterator[Guard]:
    """Yields a guard for each arm with a pair of scored runs; its variance is moderated over arms, as a verdict's."""
    base, *arms = [row for row in rows if row.arm.role in GUARDED]
    scores = {row.arm.name: [score_of(run, task) for run in row.runs] for row in (base, *arms)}
    known = [score for score in scores[base.arm.name] if score and score.parts]
    if not known:
        return
    first = known[0]
    sign = 1 if first.higher_is_better else -1
    alike = {name: [one if one and one.weights == first.weights else None for one in of] for name, of in scores.items()}
    paired = {name: of for name, of in alike.items() if any(map(all, zip(of, alike[base.arm.name], strict=False)))}
    if len(paired) < 2:
        return
    losses = {name: [sign * level(one) if one else None for one in of] for name, of in paired.items()}
    parts = {name: [_by_document(one, sign) if one else None for one in of] for name, of in paired.items()}
    table = Table.of(losses, base.arm.name, parts, first.weights)
    for effect in effects(table):
        value, of_base = (_mean(paired[name]) for name in (effect.arm, base.arm.name))
        yield Guard(
            task.task, task.metric, effect.arm, value, of_base, effect.value, _interval(effect), effect.pairs,
            len(first.parts), unit_of(first),
        )  # fmt: skip


def _by_document(score: Score, sign: int) -> list[float]:
    return [sign * part / weight for part, weight in zip(score.parts, score.weights, strict=True)]


def _mean(scores: Sequence[Score | None]) -> float:
    values = [score.value for score in scores if score]
    return math.fsum(values) / len(values)


def _interval(effect: Effect) -> tuple[float, float]:
    if effect.spread is None:
        return -math.inf, math.inf
    half = effect.spread.half_width(1 - COVERAGE)
    return effect.value - half, effect.value + half


def guard_caveats(study: Study, rows: Sequence[Row], guards: Sequence[Guard]) -> Iterator[str]:
    """Yields a caveat for each arm that falls behind on a guard, and for guards that are missing or have changed."""
    for guard in guards:
        if guard.falls:
            low, high = guard.interval
            told = f"{guard.effect:+.4f} [{low:+.4f}, {high:+.4f}] {guard.unit}".rstrip()
            yield f"guard: {guard.arm} falls behind on {guard.task}, {guard.metric}: {told}; it changes no verdict"
    late = [word for word in study.now.guard if word not in study.plan.guard]
    if late:
        yield f"exploratory: guards added after the study had begun: {', '.join(late)}"
    if study.reguarded:
        yield f"guard: {', '.join(study.reguarded)} changed since the study began; all runs are scored on the new one"
    if study.now.guard and not study.guarded:
        yield f"guard: {', '.join(study.now.guard)}: no run has been scored yet"
    compared = [row for row in rows if row.arm.role in GUARDED]
    done = [run for row in compared for run in row.runs if run.status == "done"]
    for task in study.guarded:
        if lacking := sum(score_of(run, task) is None for run in done):
            yield f"guard: {lacking} of {len(done)} finished runs have no score on {task.task}, {task.metric}"
