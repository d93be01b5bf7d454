"""`ratrain plan LADDER`: hours of each rung on a cluster, and the smallest gain and trend that the ladder finds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ratrain.cli.printing.document import print_line
from ratrain.cli.printing.tables import table
from ratrain.errors import Exit, MissingError

if TYPE_CHECKING:
    from ratrain.ablation.ladder.plan import LadderPlan, Rung
    from ratrain.ablation.running.sizing import Layout, Need

Fastest = Callable[[Sequence["Need"]], "Layout"]


@dataclass(frozen=True)
class PlannedCost:
    """A rung before it is run. `detectable` is the smallest gain that its own study finds four times of five, in parts
    of the tokens; None without rungs.noise."""

    rung: int
    parameters: int
    tokens: int
    flops: float
    runs: int
    layout: Layout
    detectable: float | None


def ladder_file(name: str) -> Path | None:
    """Returns the file of the ladder called `name`; None if it is something else."""
    from ratrain.ablation.ladder.manifest import find_ladder, is_ladder

    try:
        file = find_ladder(name)
    except MissingError:
        return None
    return file if is_ladder(file) else None


def plan_ladder(file: Path, args: argparse.Namespace, fastest: Fastest) -> int:
    """Prints or returns the cost of a ladder; `fastest` lays out the runs of one rung."""
    from ratrain.ablation.ladder.plan import make_ladder
    from ratrain.ablation.running.sizing import needs_of_study

    plan = make_ladder(file, overrides=args.set, patches=args.patches)
    noise = plan.ladder.rungs.noise
    costs = []
    for at, rung in enumerate(plan.rungs):
        needs = needs_of_study(rung.plan)
        runs = sum(sum(need.rounds) for need in needs)
        found = _detectable(rung, plan, noise[at]) if noise else None
        costs.append(PlannedCost(rung.number, rung.parameters, rung.tokens, rung.flops, runs, fastest(needs), found))
    trend = _trend(plan) if noise else None
    if args.json:
        print_line({"rungs": [asdict(cost) for cost in costs], "detectable_per_decade": trend})
        return Exit.DONE
    print("\n".join(_lines(plan, costs, trend)))
    return Exit.DONE


def _seeds(rung: Rung) -> int:
    """Returns the seeds that a rung has for certain."""
    section = rung.plan.study.seed
    return section.min if section.as_needed else len(rung.plan.seeds)


def _detectable(rung: Rung, plan: LadderPlan, noise: float) -> float:
    from ratrain.statistics.power import detectable

    arms = max(1, len(rung.plan.of_role("arm", "control")))
    return detectable(noise, arms=arms, seeds=_seeds(rung), alpha=plan.ladder.verdict.alpha)


def _trend(plan: LadderPlan) -> float:
    """Returns the smallest change of the gain per decade that is found four times of five, if the rungs lie on a line
    and its only error is that of seeds: weighted least squares and Student's t, with the level alpha / arms."""
    import numpy as np
    from scipy.special import stdtrit

    from ratrain.statistics.power import expected_prior

    x = np.log10([rung.flops for rung in plan.rungs])
    seeds, arms = np.array([_seeds(rung) for rung in plan.rungs]), max(1, len(plan.rungs[-1].plan.of_role("arm")))
    sds = np.array(plan.ladder.rungs.noise) / np.sqrt(seeds)
    df = float((seeds - 1 + expected_prior(arms)).sum())
    weights = 1 / sds**2
    centred = x - (weights @ x) / weights.sum()
    level = plan.ladder.verdict.alpha / arms
    return float((stdtrit(df, 0.8) - stdtrit(df, level / 2)) / math.sqrt(weights @ centred**2))


def _lines(plan: LadderPlan, costs: Sequence[PlannedCost], trend: float | None) -> list[str]:
    from ratrain.ablation.ladder.record import planned_ladder
    from ratrain.report.ladder.table import rates_text

    head = ("rung", "parameters", "tokens a run", "FLOPs a run", "runs", "a run alone", "device-hours", "smallest gain")
    rows = [
        (
            str(cost.rung), f"{cost.parameters:,}", f"{cost.tokens:.3g}", f"{cost.flops:.2e}", str(cost.runs),
            hours_text(cost.layout.alone), f"{cost.layout.foretold.spent / 3600:,.2f}",
            "-" if cost.detectable is None else f"{cost.detectable:.1%}",
        )
        for cost in costs
    ]  # fmt: skip
    spent = sum(cost.layout.foretold.spent for cost in costs)
    done = sum(cost.layout.foretold.finish for cost in costs)
    rates = rates_text(planned_ladder(plan))
    lines = [f"{plan.ladder.id}: {len(costs)} rungs, learning rates {rates}", "", table([head, *rows]), ""]
    lines += [f"in all {spent / 3600:,.1f} device-hours, done after {hours_text(done)}"]
    if trend is None:
        return [*lines, "rungs.noise states the noise of a rung: then the smallest gains are told"]
    told = f"smallest gain: found four times of five by the rung's own study; smallest trend: {trend:.1%} of the tokens"
    return [*lines, f"{told} per decade, if the rungs lie on a line (noise as rungs.noise states it, of seeds alone)"]


def hours_text(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds > 5400 else f"{seconds / 60:,.1f} min"
