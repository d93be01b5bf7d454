"""The losses of a ladder's rungs, read from the studies' records and the events of their runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ratrain.ablation.ladder.conclusion import LadderConclusion, conclude_ladder
from ratrain.ablation.ladder.readings import RungLosses
from ratrain.ablation.ladder.record import Ladder, PlannedRung
from ratrain.ablation.record import Study, read_study
from ratrain.ablation.results import Row, documents_of, rows_of, windows_of
from ratrain.errors import MissingError
from ratrain.statistics.paired import Table


@dataclass(frozen=True)
class RungResult:
    """One rung: the study and its rows; None and empty before it has begun, or if its folder has another plan."""

    rung: PlannedRung
    study: Study | None
    rows: tuple[Row, ...]
    is_other: bool = False  # whether a study of another plan is there

    @property
    def judged(self) -> list[Row]:
        """The rows that are compared, the baseline's first: at their tuned points if the ladder tunes.

        Controls are not: their widths differ from rung to rung, and the rungs' own studies compare them.
        """
        tuned = [row for row in self.rows if row.arm.role == "tuned"]
        if self.study and self.study.plan.tune:
            return sorted(tuned, key=lambda row: row.arm.of != self.study.now.base.name)  # type: ignore[union-attr]
        return [row for row in self.rows if row.arm.role in ("base", "arm")]

    @property
    def arms(self) -> list[str]:
        """The planned arms beside the baseline and controls."""
        return [arm.name for arm in self.study.now.of_role("arm")] if self.study else []

    @property
    def flops_spent(self) -> float:
        """Training FLOPs of all runs up to their last evaluations; a run that two arms share counts once."""
        spent = {
            run.folder: float(row.arm.train_flops_per_token) * run.log.evaluated[-1].tokens
            for row in self.rows
            for run in row.runs
            if run.log and run.log.evaluated
        }
        return sum(spent.values())

    @property
    def waiting(self) -> int:
        """The number of runs of begun arms that have not ended."""
        begun = [row for row in self.rows if row.begun]
        return sum(not run.ended for row in begun for run in row.runs[: row.planned])

    def losses(self) -> RungLosses | None:
        """Returns the losses for the fit; None before the baseline and an arm have any."""
        rows = [row for row in self.judged if any(run.result is not None for run in row.runs)]
        base = next(iter(self.judged), None)
        if base is None or not base.losses or len(rows) < 2:
            return None
        documents = documents_of(rows)
        names = {row.arm.name: row.arm.of if row.arm.role == "tuned" else row.arm.name for row in rows}
        losses = {names[row.arm.name]: [run.result for run in row.runs] for row in rows}
        parts = {names[name]: of for name, of in documents.parts.items()}
        table = Table.of(losses, names[base.arm.name], parts, documents.sizes)
        spent = _flops(base)
        costs = {names[row.arm.name]: math.log(_flops(row) / spent) for row in rows[1:]}
        failed = {names.get(row.arm.name, row.arm.name): _failed(row) for row in self.judged if row not in rows}
        windows = windows_of(self.rows)
        return RungLosses(self.rung.number, self.rung.flops, table, self._curve(base), windows, costs, failed)

    @property
    def lacks(self) -> str:
        """Why there are no losses for the fit."""
        if self.is_other:
            return "has a study of another plan"
        ended = [all(run.ended for run in row.runs[: row.planned]) for row in self.judged]
        if ended and ended[0] and not self.judged[0].losses:
            return "has no loss of the baseline: all of its runs failed or diverged"
        if len(ended) > 1 and all(ended):
            return "has no loss of an arm: all of its runs failed"
        return "is not done"

    def _curve(self, base: Row) -> dict[float, dict[int, float]]:
        """Returns the baseline's losses by the budget over the rung's, and by seed."""
        rows = [row for row in self.rows if row.arm.role == "ruler"]
        plain = next((row for row in self.rows if row.arm.role == "base"), base)
        own = self.rung.tokens
        return {(row.arm.tokens or 0) / own: _by_seed(row) for row in (plain, *rows) if row.losses}


def _failed(row: Row) -> int:
    return sum(run.status == "failed" for run in row.runs)


def _flops(row: Row) -> float:
    return float(row.arm.train_flops_per_token) * (row.arm.tokens or 1)


def _by_seed(row: Row) -> dict[int, float]:
    return {run.init: run.loss for run in row.runs if run.status == "done" and run.loss is not None}


def results_of(ladder: Ladder) -> list[RungResult]:
    """Reads every rung."""
    found = []
    for rung in ladder.plan.rungs:
        try:
            study = read_study(ladder.study(rung))
        except MissingError:
            found.append(RungResult(rung, None, ()))
            continue
        if study.now.hash != rung.hash:
            found.append(RungResult(rung, None, (), is_other=True))
            continue
        found.append(RungResult(rung, study, tuple(rows_of(study))))
    return found


def concluded(ladder: Ladder, results: Sequence[RungResult]) -> tuple[LadderConclusion | None, str]:
    """Returns the conclusion, or None and the reason why there is none yet."""
    rungs = []
    for result in results:
        if result.waiting:
            told = "1 run has" if result.waiting == 1 else f"{result.waiting} runs have"
            return None, f"rung {result.rung.number}: {told} not ended"
        if (losses := result.losses()) is None:
            return None, f"rung {result.rung.number} {result.lacks}"
        rungs.append(losses)
    arms = max(len(result.arms) for result in results)
    try:
        plan = ladder.plan
        found = conclude_ladder(rungs, alpha=plan.alpha, delta=plan.delta, arms=arms, planted=plan.planted)
        return found, ""
    except ValueError as error:
        return None, str(error)
