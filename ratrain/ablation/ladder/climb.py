"""Runs a ladder: the study of each rung, from the smallest on, and its report after every rung."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ratrain.ablation.ladder.conclusion import LadderConclusion
from ratrain.ablation.ladder.plan import LadderPlan, Rung
from ratrain.ablation.ladder.record import Ladder, ladder_folder, settle_ladder
from ratrain.ablation.ladder.results import RungResult, concluded, results_of
from ratrain.ablation.running.execute import held, set_aside, study_folder
from ratrain.errors import Exit


class Ended(Protocol):
    """What a rung's study came to."""

    @property
    def exit(self) -> int: ...


@dataclass(frozen=True)
class Climbed:
    """A ladder after its runs. `why` says why there is no conclusion yet; `exit` is that of the first rung that failed
    or was stopped."""

    ladder: Ladder
    results: Sequence[RungResult]
    conclusion: LadderConclusion | None
    why: str
    exit: int


def climb(
    plan: LadderPlan,
    out: Path,
    run: Callable[[Rung], Ended],
    report: Callable[[Climbed], object],
    *,
    fresh: bool = False,
) -> Climbed:
    """Runs what is left of a ladder with `run`, and calls `report` after every rung.

    A stopped rung ends the climb; a rung with failed runs does not. Raises ManifestError if another plan is on record,
    CannotCreateError if another process works on the ladder.
    """
    folder = ladder_folder(plan, out)
    if fresh:
        set_aside(folder)
        for rung in plan.rungs:  # all of them now, so that no page mixes them with new ones
            set_aside(study_folder(rung.plan, out))
    with held(folder):
        ladder, codes = settle_ladder(plan, out), []
        for rung in plan.rungs:
            codes.append(run(rung).exit)
            report(look(ladder, codes))
            if codes[-1] == Exit.PREEMPTED:
                break
        return look(ladder, codes)


def look(ladder: Ladder, codes: Sequence[int] = ()) -> Climbed:
    """Reads what is there of a ladder."""
    results = results_of(ladder)
    found, why = concluded(ladder, results)
    return Climbed(ladder, results, found, why, next((code for code in codes if code), Exit.DONE))
