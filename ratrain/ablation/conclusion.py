"""The conclusion of a study: the verdict on every arm, the worth of its effect in tokens and time, and the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ratrain.ablation.caveats import caveats
from ratrain.ablation.guards import Guard, guard_caveats, guards_of
from ratrain.ablation.record import PlannedArm, Study
from ratrain.ablation.results import Documents, Row, documents_of, rows_of
from ratrain.ablation.tuning import Tuned, tuning
from ratrain.statistics.forecast import Standing, seeds_needed
from ratrain.statistics.interim_looks import levels
from ratrain.statistics.noise import Component, Pairing, components, pairing
from ratrain.statistics.paired import Table, effects
from ratrain.statistics.power import more_seeds
from ratrain.statistics.token_ruler import Reading, Ruler
from ratrain.statistics.verdict import Judgement, Verdict, Word, judge
from ratrain.strict_json import strict_json


@dataclass(frozen=True)
class Worth:
    """The worth of an effect as a fraction of the baseline's budget: in tokens, and in time if the step cost is known.

    `word` is the verdict against time, at the level of the study's own verdict.
    """

    tokens: Reading
    seconds: Reading | None = None
    word: Word | None = None


@dataclass(frozen=True)
class Contrast:
    """An arm's loss minus its control's, with an interval that holds for all such comparisons together."""

    control: str
    effect: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Conclusion:
    """The verdicts, worth, noise and warnings of a study; losses and effects are in nats.

    `detectable` is the smallest effect that the planned seeds find with power 0.8 in an arm of median noise; `more`
    holds it by number of seeds, each verdict that of its arm.
    `needs` is the number of seeds that would probably decide an arm without a verdict, None if there is none.
    `later` judges the amended plan and is exploratory; None without amendments.
    """

    judgement: Judgement
    later: Judgement | None
    tuned: Tuned | None
    worth: dict[str, Worth]  # by arm
    controls: dict[str, Contrast]  # by arm
    noise: dict[str, Component]  # by kind of A/A arm
    pairing: Pairing | None
    correlation: dict[str, float]  # of the losses of an arm and the baseline over seeds, by arm
    evaluation: dict[str, float]  # standard error from the finite number of documents, by arm
    unit: str  # documents or passages
    detectable: float
    more: dict[int, float]
    needs: dict[str, int | None]
    warnings: tuple[str, ...]
    guards: tuple[Guard, ...] = ()  # downstream tasks, which change no verdict

    def record(self) -> dict[str, Any]:
        """The conclusion as strict JSON; infinite and unknown values become null."""
        record = {**asdict(self), "more": {str(seeds): effect for seeds, effect in self.more.items()}}
        return strict_json(record if self.guards else {key: of for key, of in record.items() if key != "guards"})


def conclude(study: Study, rows: Sequence[Row] | None = None) -> Conclusion | None:
    """Draws the conclusion from the rows; None until an arm and the baseline have two finished seeds in common."""
    rows = rows_of(study) if rows is None else rows
    if max((len(row.differences) for row in _judged(rows)), default=0) < 2:
        return None  # the variance between seeds cannot be estimated
    documents = documents_of(_judged(rows, base=True))
    planned = [row for row in rows if not study.is_later(row.arm.name)]
    judgement = _judge(study.plan.seeds, planned, study, documents)
    amended = study.now.hash != study.plan.hash
    known = [verdict.detectable for verdict in judgement.verdicts if math.isfinite(verdict.detectable)]
    least = float(np.median(known)) if known else math.inf
    tuned, correlation = tuning(study, rows), _correlation(rows, judgement)
    guards = guards_of(study, rows)
    return Conclusion(
        judgement,
        _judge(study.now.seeds, rows, study, documents) if amended else None,
        tuned,
        _worth(study, rows, judgement),
        _controls(study, rows, documents),
        _noise(study, rows),
        _pairing(rows),
        correlation,
        {verdict.arm: verdict.evaluation_se for verdict in judgement.verdicts if documents.unit},
        documents.unit,
        least,
        _more(study, judgement, least),
        {
            verdict.arm: needed(verdict, study)
            for verdict in judgement.verdicts
            if judgement.looks and not verdict.stops
        },
        (
            *caveats(
                study,
                rows,
                least=least,
                unit=documents.unit,
                tuned=tuned,
                correlation=correlation,
                words={v.arm: v.word for v in judgement.verdicts},
            ),
            *guard_caveats(study, rows, guards),
        ),
        guards,
    )


def _more(study: Study, judgement: Judgement, least: float) -> dict[int, float]:
    """Returns the smallest detectable effect in an arm of median noise by number of seeds; `least` is that of the
    planned seeds, to which simulated power at other numbers is scaled."""
    if not (math.isfinite(judgement.sd) and judgement.sd > 0 and math.isfinite(least)):
        return {}
    rule, seeds = study.plan.verdict, float(np.median([verdict.seeds for verdict in judgement.verdicts]))
    evaluation = float(np.median([verdict.evaluation_se for verdict in judgement.verdicts]))
    prior = min(100.0, max(0.0, judgement.df - (seeds - 1)))
    arms = len(judgement.verdicts)
    options = {"alpha": rule["alpha"], "spending": rule["spending"], "prior": prior}
    planned = study.reach
    counts = sorted({*range(3, 11), planned})
    found = more_seeds(judgement.sd, arms=arms, evaluation=evaluation, counts=counts, **options)
    return {seeds: effect * least / found[planned] for seeds, effect in found.items()}


def standing_of(verdict: Verdict) -> Standing | None:
    """Returns what is known of an arm for a forecast; None before it has two seeds."""
    if not (verdict.df > 0 and verdict.sd > 0):
        return None
    return Standing(verdict.effect, verdict.sd, verdict.df, verdict.seeds, verdict.evaluation_se, verdict.barred)


def needed(verdict: Verdict, study: Study) -> int | None:
    """Returns the number of seeds that would probably decide an arm; None if there is no such number."""
    arm, rule = standing_of(verdict), study.plan.verdict
    return arm and seeds_needed(arm, rule["alpha"] / len(study.plan.of_role("arm", "control")), rule["delta"])


def _judged(rows: Sequence[Row], *, base: bool = False) -> list[Row]:
    """Selects the rows that get a verdict (arms and controls), with `base` also the baseline's."""
    return [row for row in rows if row.arm.role in ("arm", "control") or (base and row.arm.role == "base")]


def _judge(seeds: Sequence[tuple[int, int]], rows: Sequence[Row], study: Study, documents: Documents) -> Judgement:
    """Judges these rows after the leading seeds whose runs have all ended.

    Arms without a begun run count in the family of comparisons and delay no verdict.
    """
    chosen, rule, looks = _judged(rows, base=True), study.plan.verdict, study.looks
    planned = study.reach if looks else len(seeds)
    runs = {row.arm.name: [run for run in row.runs if (run.init, run.data) in seeds][:planned] for row in chosen}
    begun = [of for of in runs.values() if any(run.status != "not begun" for run in of)]
    over = [all(run.ended for run in block) for block in zip(*begun, strict=True)]
    blocks = over.index(False) if False in over else len(over)
    return judge(
        {name: [run.result for run in of] for name, of in runs.items()}, study.now.base.name, planned=planned,
        alpha=rule["alpha"], delta=rule["delta"], spending=rule["spending"], sizes=documents.sizes,
        parts={name: [run.parts if run.status == "done" else None for run in of] for name, of in runs.items()},
        blocks=looks[-1].seeds if looks else None if rule["stop"] else blocks, **_as_needed(study),
    )  # fmt: skip


def _as_needed(study: Study) -> dict[str, Any]:
    """Returns the looks of a study with seeds as needed, as arguments of `judge`."""
    if not study.plan.first_look:
        return {}
    looks = study.looks
    return {
        "looks": [look.seeds for look in looks], "shares": [look.share for look in looks],
        "running": [look.arms for look in looks], "first": study.plan.first_look,
    }  # fmt: skip


def judged(study: Study, rows: Sequence[Row]) -> Judgement:
    """Judges the planned arms of a study on their finished runs."""
    rows = [row for row in rows if not study.is_later(row.arm.name)]
    return _judge(study.plan.seeds, rows, study, documents_of(_judged(rows, base=True)))


def _pairing(rows: Sequence[Row]) -> Pairing | None:
    """Measures the pairing of the baseline and the arms on the seeds that all finished; None for fewer than two.

    Arms with less than half of the baseline's seeds are left out: with seeds as needed they leave too few in common.
    """
    base = len(rows[0].losses)
    losses = [[run.result for run in row.runs] for row in _judged(rows, base=True) if 2 * len(row.losses) >= base]
    y = np.array([[math.nan if x is None else x for x in of] for of in losses if any(x is not None for x in of)], float)
    return pairing(y) if len(y) > 1 and np.isfinite(y).all(0).sum() >= 2 else None


def _correlation(rows: Sequence[Row], judgement: Judgement) -> dict[str, float]:
    """Returns by arm the correlation of its losses with the baseline's over seeds, 1 - var(difference) / 2 var(loss):
    the moderated variance of the arm, and that of losses pooled over arms."""
    results = [[run.result for run in row.runs] for row in _judged(rows, base=True)]
    finished = [np.array([x for x in of if x is not None and math.isfinite(x)]) for of in results]
    some = [losses for losses in finished if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in some)
    variance = sum(float(losses.var(ddof=1)) * (len(losses) - 1) for losses in some) / freedom if freedom else 0.0
    known = [verdict for verdict in judgement.verdicts if math.isfinite(verdict.sd)]
    return {v.arm: max(-1.0, 1 - v.sd**2 / (2 * variance)) for v in known} if variance else {}


def _worth(study: Study, rows: Sequence[Row], judgement: Judgement) -> dict[str, Worth]:
    """Reads every judged arm on the ruler; empty unless the baseline has two losses at each of three budgets, its own
    included, and they fall with the budget."""
    base = study.now.base
    points = [row for row in rows if row.arm.role in ("base", "ruler") and row.arm.tokens]
    curve = {
        int(row.arm.tokens or 0): {
            run.init: run.loss for run in row.runs if run.status == "done" and run.loss is not None
        }
        for row in points
    }
    curve = {tokens: runs for tokens, runs in curve.items() if len(runs) >= 2}
    common = set.intersection(*map(set, curve.values())) if curve else set()
    if study.plan.first_look and len(common) >= 2:  # the baseline has more seeds than its other budgets
        curve = {
            tokens: {seed: loss for seed, loss in runs.items() if seed in common} for tokens, runs in curve.items()
        }
    if len(curve) < 3 or base.tokens not in curve:
        return {}
    try:
        ruler = Ruler.of(curve)
    except ValueError:  # the baseline's loss does not fall with its budget
        return {}
    arms = {arm.name: arm for arm in study.now.arms}
    found = {}
    for verdict in judgement.verdicts:
        if math.isfinite(verdict.effect) and all(map(math.isfinite, verdict.pointwise)):
            found[verdict.arm] = _worth_of(study, arms[verdict.arm], verdict, ruler, looked=bool(judgement.looks))
    return found


def _worth_of(study: Study, arm: PlannedArm, verdict: Verdict, ruler: Ruler, *, looked: bool) -> Worth:
    base, rule = study.now.base, study.plan.verdict
    at: dict[str, Any] = {"budget": base.tokens, "alpha": rule["alpha"]}
    tokens, cost = ruler.tokens(verdict.effect, verdict.pointwise, **at), study.costs.get(arm.name)
    if cost is None:
        return Worth(tokens)
    longer = (arm.tokens or 0) / (base.tokens or 1)  # time is proportional to the token budget
    price = {"cost": cost.ratio * longer, "cost_interval": tuple(end * longer for end in cost.interval)}
    seconds = ruler.seconds(verdict.effect, verdict.pointwise, **price, **at)
    if not looked or not all(map(math.isfinite, verdict.interval)):
        return Worth(tokens, seconds, "inconclusive")
    same = (
        [ruler.tokens(end, (end, end), **at).gain for end in (rule["delta"], -rule["delta"])] if rule["delta"] else []
    )
    word = _against_time(ruler.seconds(verdict.effect, verdict.interval, **price, **at), same)
    barred = word in ("better", "equivalent") and verdict.diverged
    return Worth(tokens, seconds, "inconclusive" if barred else word)


def _against_time(reading: Reading, same: Sequence[float | None]) -> Word:
    """Returns the verdict by the reading's interval; `same` holds the gains at a loss difference of +delta and
    -delta."""
    low, high = (math.nan if end is None else end for end in reading.interval)
    known = [gain for gain in same if gain is not None]
    if len(known) == 2 and known[0] < low and high < known[1]:
        return "equivalent"
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


def _controls(study: Study, rows: Sequence[Row], documents: Documents) -> dict[str, Contrast]:
    """Compares every costly arm with its widened baseline, at a Bonferroni share of alpha each; with seeds as needed at
    that of the last look, since the looks decide when the runs stop."""
    losses = {row.arm.name: [run.result for run in row.runs] for row in _judged(rows, base=True)}
    asked = [row.arm for row in _judged(rows) if row.arm.control in losses]
    found = {}
    for arm in asked:
        table = Table.of(losses, arm.control, documents.parts, documents.sizes)
        effect = next(e for e in effects(table) if e.arm == arm.name)
        if effect.pairs >= 3 and effect.seeds:
            half = effect.seeds.half_width(_level(study, len(asked)))
            found[arm.name] = Contrast(arm.control, effect.value, (effect.value - half, effect.value + half))
    return found


def _level(study: Study, comparisons: int) -> float:
    """Returns the level of one of so many comparisons at the last look."""
    rule = study.plan.verdict
    looks = [look for look in study.looks if look.share]
    if not looks:
        return rule["alpha"] / comparisons
    seeds, shares = tuple(look.seeds for look in looks), tuple(look.share for look in looks)
    return levels(seeds, rule["alpha"] / comparisons, rule["spending"], shares)[-1]


def _noise(study: Study, rows: Sequence[Row]) -> dict[str, Component]:
    """Estimates the variance of each kind of A/A arm, which differs from the baseline of its seed in that alone."""
    base, groups = rows[0], {}
    for row in _judged(rows):
        if row.arm.twin != "none" and row.arm.recipe == study.now.base.recipe:
            pairs = zip(base.runs, row.runs, strict=True)
            both = [[a.result, b.result] for a, b in pairs if a.result is not None and b.result is not None]
            both = [pair for pair in both if np.isfinite(pair).all()]
            groups |= {row.arm.twin: both} if both else {}
    return components(groups)
