"""A trial: from manifests of ideas to verdicts, with the controls and the seeds that a verdict needs."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratrain.ablation.budget import StudyBudget
from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.manifest import AblationManifest, Seeds, Verdicts
from ratrain.ablation.plan import Plan, plan_of
from ratrain.ablation.record import Study
from ratrain.ablation.running.seeds_as_needed import DECIDED
from ratrain.ablation.search import Entry
from ratrain.config.find import find_manifest
from ratrain.config.parse import Layer
from ratrain.errors import Fault, ManifestError, UsageError
from ratrain.registry import run_files
from ratrain.statistics.verdict import Verdict
from ratrain.strict_json import strict_json

if TYPE_CHECKING:
    from ratrain.ablation.arms import Arm
    from ratrain.config.read import Source
    from ratrain.statistics.token_ruler import Reading

ALPHA = 0.05  # of a whole search
DELTA = 0.01  # nats: a difference that does not matter, about 2 % of the tokens at the study scale
BUDGET = "15m"
SEEDS = Seeds(min=3, max=40)
RULER = (0.8, 1.25)  # budgets of the baseline, in parts of its own
REQUIREMENTS = ("better", "not-worse", "equivalent")


def trial_plan(
    ideas: Sequence[str],
    *,
    base: str = "v0",
    scale: str = "study",
    budget: str | None = None,
    delta: float = DELTA,
    overrides: Sequence[str] = (),
    patches: Sequence[Path] = (),
) -> Plan:
    """Plans the study of the ideas, manifests by path, file name or id, against the manifest `base`.

    Its name holds a digest of all recipes and of the code of plug-ins, so that a changed idea is another trial. Raises
    ManifestError, UsageError, and MissingError for an unknown name.
    """
    if not ideas or not 0 < delta < math.inf:
        raise UsageError(f"expected an idea or more, and delta above 0; got {len(ideas)} ideas and delta {delta}")
    try:
        StudyBudget.of(budget or BUDGET)
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    study = AblationManifest(
        id="try", base=base, scale=scale, seed=SEEDS, budget=budget or BUDGET, arms=tuple(dict.fromkeys(ideas)),
        ruler=RULER, verdict=Verdicts(delta=delta, alpha=ALPHA),
    )  # fmt: skip
    if same := [idea for idea in ideas if find_manifest(idea).resolve() == find_manifest(base).resolve()]:
        raise ManifestError([Fault(same[0], "", f"is the baseline itself; expected another manifest than {base}")])
    plan = plan_of(study, Layer(" ".join(ideas), {}), overrides=overrides, patches=patches)
    plan = replace(plan, arms=tuple(_by_code(arm) for arm in plan.arms))
    tried = plan.of_role("arm")
    facts = [arm.recipe.encode() for arm in (plan.base, *tried)] + [_code(arm) for arm in tried]
    name = f"try-{'-'.join(arm.name for arm in tried)[:40]}-{hashlib.sha256(b''.join(facts)).hexdigest()[:6]}".lower()
    return replace(
        plan,
        study=study.model_copy(update={"id": name}),
        command=_command(ideas, base, scale, delta, overrides, patches),
    )


def _code(arm: Arm) -> bytes:
    """Returns the code of the plug-ins of an arm."""
    return b"".join(file.read_bytes() for file in run_files(arm.manifest.patch.values()).values())


def _by_code(arm: Arm) -> Arm:
    """Gives the runs of an arm with plug-ins folders that follow their code, so that a changed idea has its own."""
    if not (code := _code(arm)):
        return arm
    id_ = f"{arm.manifest.id}-{hashlib.sha256(code).hexdigest()[:6]}"

    def source_of(*args: Any) -> Source:
        source = arm.source_of(*args)
        return replace(source, tree={**source.tree, "id": id_})

    return replace(arm, manifest=arm.manifest.model_copy(update={"id": id_}), source_of=source_of)


def _command(
    ideas: Sequence[str], base: str, scale: str, delta: float, overrides: Sequence[str], patches: Sequence[Path]
) -> str:
    """Returns the command that repeats a trial; its budget is on record."""
    words = ["ratrain", "try", *ideas]
    words += ["--base", base] * (base != "v0") + ["--scale", scale] * (scale != "study")
    words += ["--delta", repr(delta)] * (delta != DELTA)
    words += [word for key in overrides for word in ("--set", key)]
    return shlex.join([*words, *(word for folder in patches for word in ("--patches", str(folder)))])


def in_search(plan: Plan, entry: Entry) -> Plan:
    """Returns the plan of a trial with its place in a search and its share of alpha."""
    rule = plan.study.verdict.model_copy(update={"alpha": ALPHA * entry.share})
    study = plan.study.model_copy(update={"verdict": rule})
    return replace(plan, study=study, search=entry.search, before=entry.before)


def outcome(study: Study, found: Conclusion | None, report: Path) -> dict[str, Any]:
    """Returns the outcome of a trial as strict JSON: one entry per idea, and the fields of an only idea at the top.

    Effects are in nats per token, gains and costs in parts of the baseline's: 0.05 is 5 %.
    """
    ideas = [_of_idea(arm.name, study, found) for arm in study.now.of_role("arm")]
    told: dict[str, Any] = {"ideas": ideas} if len(ideas) > 1 else ideas[0]
    last = study.looks[-1] if study.looks else None
    told |= {
        "baseline": study.now.base.name, "scale": study.now.scale, "alpha": study.plan.verdict["alpha"],
        "delta": study.plan.verdict["delta"], "search": study.plan.search, "ideas_before": study.plan.before,
        "ended": last.over if last else "", "warnings": list(found.warnings) if found else [], "report": str(report),
    }  # fmt: skip
    return strict_json(told)


def _of_idea(name: str, study: Study, found: Conclusion | None) -> dict[str, Any]:
    told: dict[str, Any] = {"idea": name, "verdict": "inconclusive", "seeds": 0}
    if found is None:
        return told
    verdict, worth, cost = found.judgement[name], found.worth.get(name), study.costs.get(name)
    contrast = found.controls.get(name)
    return told | {
        "verdict": verdict.word, "effect": verdict.effect, "interval": verdict.interval, "p": verdict.p,
        "seeds": verdict.seeds, "seeds_needed": found.needs.get(name), "why": verdict.why,
        "tokens": _gain(worth.tokens if worth else None), "time": _gain(worth.seconds if worth else None),
        "against_time": worth.word if worth else None,
        "step_cost": {"ratio": cost.ratio, "interval": cost.interval} if cost else None,
        "against_control": {"control": contrast.control, "effect": contrast.effect, "interval": contrast.interval}
        if contrast else None,
    }  # fmt: skip


def _gain(reading: Reading | None) -> dict[str, Any] | None:
    return {"gain": reading.gain, "interval": reading.interval, "note": reading.note} if reading else None


def meets(verdict: Verdict, requirement: str, delta: float) -> bool:
    """Returns whether a verdict is "better", "equivalent" or "not-worse": one of both, or surely worse by less than
    delta."""
    if requirement == "not-worse":
        return verdict.word in ("better", "equivalent") or (not verdict.diverged and verdict.interval[1] < delta)
    return verdict.word == requirement


def sentences(study: Study, found: Conclusion) -> Iterator[str]:
    """Yields a sentence per idea: its verdict, its effect, and what would decide an open one."""
    for arm in study.now.of_role("arm"):
        verdict, worth, cost = found.judgement[arm.name], found.worth.get(arm.name), study.costs.get(arm.name)
        low, high = verdict.interval
        yield f"{arm.name} is {verdict.word}: {verdict.effect:+.4f} nats [{low:+.4f}, {high:+.4f}], {verdict.why}"
        told: Mapping[str, object] = {
            "in tokens": worth and worth.tokens, "in time": worth and worth.seconds,
            "step": cost and f"{cost.ratio:.3f} [{cost.interval[0]:.3f}, {cost.interval[1]:.3f}] of the baseline's",
        }  # fmt: skip
        if words := "; ".join(f"{name}: {value}" for name, value in told.items() if value):
            yield f"  {words}"
    if study.looks and study.looks[-1].over not in ("", DECIDED):
        last = study.looks[-1]
        more = "; a larger --budget goes on" if last.seeds < len(study.plan.seeds) else ""
        yield f"ended after {last.seeds} seeds: {last.over}{more}"
    if study.plan.before:
        yield (
            f"alpha {study.plan.verdict['alpha']:.2g}: the search of {study.plan.search} has tried {study.plan.before} "
            "ideas against this baseline before"
        )
