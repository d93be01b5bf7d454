"""What a study comes to: the verdict on every arm, and the noise that it stands on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ratrain.ablation.noise import Component, Pairing, components, pairing
from ratrain.ablation.plan import Arm, Plan
from ratrain.ablation.power import detectable, more_seeds
from ratrain.ablation.results import Reached, Row
from ratrain.ablation.verdict import Judgement, judge


@dataclass(frozen=True)
class Conclusion:
    """`detectable` is the effect that the planned seeds find with power 0.8, by number of seeds in `more`; in nats,
    as all losses."""

    judgement: Judgement
    noise: dict[str, Component]  # by kind of A/A arm
    pairing: Pairing | None
    detectable: float
    more: dict[int, float]

    def record(self) -> dict[str, Any]:
        """As JSON has it: what is infinite or unknown is null."""
        return _finite({**asdict(self), "more": {str(seeds): effect for seeds, effect in self.more.items()}})


def conclude(plan: Plan, rows: Sequence[Row]) -> Conclusion | None:
    """From what the runs reached; None before two seeds of an arm and of the baseline are done."""
    losses = {row.arm: [_loss(run) for run in row.runs] for row in rows}
    finished = [[isinstance(loss, float) and math.isfinite(loss) for loss in of] for of in losses.values()]
    pairs = [sum(a and b for a, b in zip(finished[0], other, strict=True)) for other in finished[1:]]
    if max(pairs, default=0) < 2:  # nothing says how much one seed differs from another
        return None
    rule = plan.verdict
    planned = len(plan.seeds)
    judgement = judge(
        losses, plan.base.name, planned=planned, alpha=rule.alpha, delta=rule.delta, spending=rule.spending,
        blocks=None if rule.stop else _ended(rows),
    )  # fmt: skip
    whole = sum(all(column) for column in zip(*finished, strict=True))
    options: dict[str, Any] = {"arms": len(rows) - 1, "alpha": rule.alpha, "spending": rule.spending}
    known = math.isfinite(judgement.sd) and judgement.sd > 0
    return Conclusion(
        judgement,
        _noise(plan, losses),
        pairing(losses, plan.base.name) if whole >= 2 else None,
        detectable(judgement.sd, seeds=planned, **options) if known else math.inf,
        more_seeds(judgement.sd, **options) if known else {},
    )


def _ended(rows: Sequence[Row]) -> int:
    """Leading seeds of which every run has ended, failed ones too: the others are not to wait for them for ever."""
    seeds = zip(*(row.runs for row in rows), strict=True)
    over = [all(run.status in ("done", "diverged", "failed") for run in seed) for seed in seeds]
    return over.index(False) if False in over else len(over)


def _loss(run: Reached) -> float | None:
    """Not a number where the run diverged; None where it is not done."""
    if run.status == "diverged":
        return math.nan
    return run.loss if run.status == "done" else None


def _noise(plan: Plan, losses: dict[str, list[float | None]]) -> dict[str, Component]:
    """Of each kind of A/A arm in the study: it and the baseline, seed by seed, differ in that alone."""
    groups: dict[str, list[list[float]]] = {}
    for arm in plan.arms:
        if kind := _twin_of(arm, plan.base):
            pairs = zip(losses[plan.base.name], losses[arm.name], strict=True)
            both = [[a, b] for a, b in pairs if a is not None and b is not None and math.isfinite(a + b)]
            groups |= {kind: both} if both else {}
    return components(groups)


def _twin_of(arm: Arm, base: Arm) -> str:
    kind = arm.manifest.seed.twin
    return kind if kind != "none" and arm.recipe == base.recipe else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
