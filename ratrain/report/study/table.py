"""The table of a study for terminals, and the numbers of all its reports as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row, windows_of
from ratrain.report.compare import NONE
from ratrain.statistics.verdict import Judgement, Verdict
from ratrain.storage.run_log import RunLog
from ratrain.tasks.compare import number

HEAD = ("arm", "val loss", "vs base", "interval", "verdict", "by seed", "parameters", "KV bytes/token", "runs")
_SHOWN = 5  # differences by seed
COMPARED = ("base", "arm", "control")  # roles


def cells(rows: Sequence[Row], found: Conclusion | None) -> list[tuple[str, ...]]:
    """Returns the table under HEAD for all rows except tuning arms.

    A row holds the mean over the finished seeds, the effect with its interval, which holds for all arms together, and
    the paired difference of each seed.
    """
    table, bases = [], {row.arm.name for row in rows if row.arm.role == "base"}
    for row in rows:
        if row.arm.role == "tuning":
            continue
        effect = interval = word = each = NONE
        itself = row.arm.role in ("base", "ruler") or (row.arm.role == "tuned" and row.arm.of in bases)
        if row.differences and not itself:
            effect = f"{statistics.fmean(row.differences):+.4f}"
            more = len(row.differences) - _SHOWN
            first = row.differences[: _SHOWN if more > 1 else None]
            each = " ".join([*(f"{value:+.4f}" for value in first), *([f"and {more} more"] if more > 1 else [])])
        if (verdict := verdict_of(row, found)) and math.isfinite(verdict.effect):
            effect, word, interval = (
                f"{verdict.effect:+.4f}",
                verdict.word,
                span(verdict.interval, "{:+.4f} to {:+.4f}"),
            )
        costs = f"{row.arm.parameters:,}", f"{row.arm.kv_bytes_per_token:,}"
        table.append((row.arm.name, loss_text(row), effect, interval, word, each, *costs, row.status))
    return table


GUARD_HEAD = ("guard", "arm", "score", "baseline's", "effect", "interval, 95 %", "seeds", "documents")


def guard_rows(found: Conclusion) -> list[tuple[str, ...]]:
    """Returns the scores on downstream tasks under GUARD_HEAD: a row for each task and arm; above zero is better."""
    return [
        (
            f"{one.task}, {one.metric}", one.arm, number(one.value), number(one.base),
            f"{one.effect:+.4f} {one.unit}".rstrip(), _between(one.interval), str(one.pairs), f"{one.documents:,}",
        )
        for one in found.guards
    ]  # fmt: skip


def _between(ends: tuple[float, float]) -> str:
    low, high = (round(end, 4) + 0.0 for end in ends)  # no negative zero: arms that answer alike have an interval of 0
    return span((low, high), "{:+.4f} to {:+.4f}")


def verdict_of(row: Row, found: Conclusion | None) -> Verdict | None:
    """Returns the verdict on a row's arm: of the first plan, of the amended plan for an added arm, of the tuned family
    for a tuned arm; None without one."""
    if found is None:
        return None
    if row.arm.role == "tuned":
        return verdict_on(found.tuned.judgement if found.tuned else None, row.arm.of)
    return verdict_on(found.judgement, row.arm.name) or verdict_on(found.later, row.arm.name)


def verdict_on(judgement: Judgement | None, arm: str) -> Verdict | None:
    """Returns the judgement's verdict on an arm; None without one."""
    return next((v for v in judgement.verdicts if v.arm == arm), None) if judgement else None


def first_log(row: Row) -> RunLog:
    """Returns the log of the first begun run of a row that has one."""
    return next(run.log for run in row.runs if run.log)


def plan_facts(study: Study, rows: Sequence[Row] = ()) -> Iterator[tuple[str, str]]:
    """Yields the facts of the plan, and the digest of the windows that the runs in `rows` state, as name and text."""
    now, rule, metric = study.now, study.plan.verdict, study.now.metric
    arms = len(now.of_role(*COMPARED))
    if now.first_look:
        budget = f" within {study.budgets[-1][0]}" if study.budgets[-1][0] else ""
        yield (
            "plan",
            f"{arms} arms x {now.first_look} to {len(now.seeds)} seeds as needed{budget}, baseline {now.base.name}",
        )
    else:
        seeds = ", ".join(str(a) if a == b else f"{a}/{b}" for a, b in now.seeds)
        yield "plan", f"{arms} arms x {len(now.seeds)} seeds ({seeds}), baseline {now.base.name}"
    if now.search:
        yield "search", f"{now.before} ideas were tried before, since {now.search}"
    yield "scale", now.scale
    yield "budget", f"{now.base.tokens:,} tokens a run" if now.base.tokens else "in seconds"
    last = f"mean of the last {metric['last']} evaluations" if metric["last"] > 1 else "last evaluation"
    yield (
        "metric",
        f"validation loss, nats per token, {last}" + (f", weights averaged at {metric['ema']:g}" * (metric["ema"] > 0)),
    )
    if windows := windows_of(rows):
        yield "validation windows", windows
    if rates := _rates(study, rows):
        yield "learning rates", rates
    if now.guard:
        yield "guards", f"{', '.join(now.guard)}, which change no verdict"
    yield "matched by", now.match
    spent = {"obrien_fleming": "as O'Brien and Fleming", "pocock": "as Pocock", "linear": "evenly"}.get(
        rule["spending"], rule["spending"]
    )
    yield "alpha", f"{rule['alpha']:g} for all arms and looks, spent {spent}"
    yield "delta", f"{rule['delta']:g} nats" if rule["delta"] else "none, so nothing is called equivalent"
    yield "plan hash", now.hash[:16]


def _rates(study: Study, rows: Sequence[Row]) -> str:
    """Returns how learning rates were chosen: tuned, or transferred from a shape; empty for those of the manifests."""
    if study.now.tune:
        return f"tuned: {', '.join(study.now.tune['grid'])} on the same grid for every arm, on seeds apart"
    models = (run.log.started.manifest.get("model", {}) for row in rows for run in row.runs if run.log)
    model = next(models, {})
    if (kind := model.get("parametrisation", "standard")) == "standard":
        return ""
    base = " x ".join(str(model["base"][key]) for key in ("n_layer", "n_embd") if model["base"].get(key))
    return f"transferred by {kind}, from {base}"


def loss_text(row: Row) -> str:
    """Formats the mean loss over the finished seeds, of a recall task with the share of right answers; "-" without."""
    right = "" if row.accuracy is None else f" ({100 * row.accuracy:.1f} % right)"
    return NONE if row.mean is None else f"{row.mean:.4f}{right}"


def span(ends: tuple[float, float], form: str = "[{:+.4f}, {:+.4f}]") -> str:
    """Formats an interval; "-" if an end is not finite."""
    return form.format(*ends) if all(map(math.isfinite, ends)) else NONE


def ratio(value: float, of: float) -> str:
    """Formats a ratio in three decimals, as "1" if the values are equal, as "-" if the denominator is 0."""
    return NONE if not of else "1" if value == of else f"{value / of:.3f}"
