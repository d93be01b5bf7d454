"""The page of a study: its verdicts, their evidence, and the commands to reproduce them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row
from ratrain.errors import UnavailableError
from ratrain.report.compare import NONE, environment_of, peak_memory, settings
from ratrain.report.html import Cell, render
from ratrain.report.study.plots import Plots, plots
from ratrain.report.study.table import (
    COMPARED,
    GUARD_HEAD,
    first_log,
    guard_rows,
    loss_text,
    plan_facts,
    ratio,
    span,
    verdict_of,
)
from ratrain.report.study.verdicts import later_verdicts, tuned_verdicts, verdict_row

_KINDS = {
    "ulp": "one weight moved by one unit in the last place", "init": "other initial weights",
    "order": "other order of batches",
}  # fmt: skip


def study_page(study: Study, rows: Sequence[Row], found: Conclusion | None) -> tuple[str, bytes]:
    """Builds the page as HTML, and the figure of the study's grids as PNG, empty if the study has no grid."""
    shown, drawn, missing = _ordered(study, rows, found), Plots(), ""
    try:
        drawn = plots(study, rows, shown, found)
    except UnavailableError as error:
        missing = str(error)
    logs = {f"{row.arm.name} s{run.init}": run.log for row in rows for run in row.runs if run.log}
    page = render(
        "study.html.jinja",
        title=study.now.title or study.now.id,
        study=study,
        found=found,
        plan=list(plan_facts(study, rows)),
        added=_added(study),
        verdicts=[verdict_row(study, row, found) for row in shown],
        judged=[v for row in shown if row.arm.role != "base" and (v := verdict_of(row, found))],
        waiting=[row.arm.name for row in rows if row.arm.role in COMPARED and not row.begun],
        looks=list(_looks(study)),
        tuned=tuned_verdicts(rows, found),
        later=later_verdicts(found),
        guard_head=GUARD_HEAD,
        guards=guard_rows(found) if found else [],
        missing=missing,
        drawn=drawn,
        budgets=_budgets(rows),
        noise=list(_noise(found)) if found else [],
        detectable=found.detectable if found and math.isfinite(found.detectable) else None,
        costs=_costs(study, shown),
        changes=list(_changes(shown)),
        environment=environment_of(logs),
        commands=_commands(study, shown),
    )
    return page, drawn.sweep


def _ordered(study: Study, rows: Sequence[Row], found: Conclusion | None) -> list[Row]:
    """Returns the compared rows with a begun run: the baseline, the arms by effect from the best on, then the controls
    and A/A arms."""

    def place(row: Row) -> tuple[bool, bool, float]:
        verdict, serves = verdict_of(row, found), row.arm.role == "control" or row.arm.twin != "none"
        effect = verdict.effect if verdict else row.mean
        return row.arm.role != "base", serves, effect if effect is not None and math.isfinite(effect) else math.inf

    return sorted((row for row in rows if row.arm.role in COMPARED and row.begun), key=place)


def _added(study: Study) -> list[str]:
    """Returns the arms and the seeds that were added after the study had begun, each as one text."""
    arms = [arm.name for arm in study.now.arms if study.is_later(arm.name)]
    seeds = [str(init) for init, data in study.now.seeds if (init, data) not in study.plan.seeds]
    return [f"{kind} {', '.join(of)}" for kind, of in (("arms", arms), ("seeds", seeds)) if of]


def _looks(study: Study) -> Iterator[tuple[str, ...]]:
    """Yields what each look of a study with seeds as needed found and decided."""
    for at, look in enumerate(study.looks):
        text = [budget for budget, before in study.budgets if before <= at][-1]
        budget = StudyBudget.of(text) if text else None
        spent = f"{budget.text(look.spent)} of {budget.text(budget.amount)}" if budget else NONE
        given_up, share = ", ".join(look.dropped), f"{100 * look.share:.0f} %"
        yield str(look.seeds), str(len(look.arms)), share, spent, given_up, look.over


def _budgets(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns tokens, loss and status of the baseline at other budgets."""
    begun = [row for row in rows if row.arm.role == "ruler" and row.begun]
    return [(row.arm.name, f"{row.arm.tokens or 0:,}", loss_text(row), row.status) for row in begun]


def _noise(found: Conclusion) -> Iterator[tuple[str | Cell, ...]]:
    """Yields standard deviation, interval or range, and degrees of freedom of each source of noise."""
    judgement = found.judgement
    if math.isfinite(judgement.sd):
        known = [verdict.sd for verdict in judgement.verdicts if math.isfinite(verdict.sd)]
        ends = f"{min(known):.5f} to {max(known):.5f}"
        name = Cell("a paired difference", ("median over arms, and the range of the arms",))
        yield name, f"{judgement.sd:.5f}", ends, f"{judgement.df:.0f}"
    for kind, part in found.noise.items():
        ends = math.sqrt(part.interval[0]), math.sqrt(part.interval[1])
        name = Cell(f"A/A {kind}", (_KINDS.get(kind, ""),))
        yield name, f"{math.sqrt(part.variance):.5f}", span(ends, "[{:.5f}, {:.5f}]"), f"{part.df:.0f}"


def _costs(study: Study, shown: Sequence[Row]) -> list[tuple[str | Cell, ...]]:
    """Returns step time and median peak memory of each arm, each with its ratio to the baseline's."""
    base = _peak(shown[0]) if shown and shown[0].arm.role == "base" else 0
    rows: list[tuple[str | Cell, ...]] = []
    for row in shown:
        cost, peak, timed = study.costs.get(row.arm.name), _peak(row), (NONE, NONE)
        if cost:
            timed = f"{1000 * cost.seconds:.2f}", Cell(f"{cost.ratio:.3f}", (span(cost.interval, "[{:.3f}, {:.3f}]"),))
        held = (f"{peak / 2**20:,.0f}", ratio(peak, base)) if peak else (NONE, NONE)
        rows.append((row.arm.name, *timed, *held))
    return rows


def _peak(row: Row) -> float:
    """Returns the median over the runs: a run that was reused may have been trained beside other work."""
    peaks = [peak_memory(run.log) for run in row.runs if run.log]
    return median(peaks) if peaks else 0


class Change(NamedTuple):
    """The keys in which an arm differs from the baseline, with both values; `known` if both manifests are on record."""

    arm: str
    base: str
    rows: list[tuple[str, str, str]]
    known: bool


def _changes(shown: Sequence[Row]) -> Iterator[Change]:
    if not shown or shown[0].arm.role != "base":
        return
    base = settings(first_log(shown[0]))
    for row in shown[1:]:
        own = settings(first_log(row))
        unlike = [key for key in dict.fromkeys([*base, *own]) if base.get(key) != own.get(key)]
        rows = [(key, base.get(key, NONE), own.get(key, NONE)) for key in unlike]
        yield Change(row.arm.name, shown[0].arm.name, rows, bool(base and own))


def _commands(study: Study, shown: Sequence[Row]) -> tuple[str, str]:
    """Returns the command that runs the study, and one that trains a run of it again."""
    arm = next((row.arm for row in shown if row.arm.role != "base"), study.now.base)
    again = f"ratrain --ablate {shlex.quote(study.now.file)} --scale {study.now.scale}"
    return (
        study.now.command or again,
        f"ratrain replay {study.folder.name} --arm {shlex.quote(arm.name)} --seed {arm.seeds[0][0]}",
    )
