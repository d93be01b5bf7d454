"""Caveats of a study: every deviation from a fair comparison, for the reader of its results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ratrain.ablation.record import METHOD, Study
from ratrain.ablation.results import Reached, Row
from ratrain.ablation.tuning import Tuned, edges
from ratrain.events import NOT_CAUSAL

_WEAK = 0.5  # correlation of paired seeds below which pairing does not even halve the number of seeds


def caveats(
    study: Study,
    rows: Sequence[Row],
    *,
    least: float,
    unit: str,
    tuned: Tuned | None,
    correlation: Mapping[str, float],
    words: Mapping[str, str],
) -> Iterator[str]:
    """Yields the caveats; `least` is the smallest effect that the planned seeds find, `unit` the sampling unit of the
    evaluation, `correlation` that of paired seeds by arm, `words` the verdicts by arm."""
    if study.method != METHOD:
        yield (
            f"method: the plan was recorded when the variances of effects were {study.method!r}; verdicts here rest on "
            f"{METHOD!r} ones, and may differ from an earlier report's"
        )
    yield from _later(study)
    yield from _changed_words(study, words)
    yield from _ends(rows)
    if len({len(row.losses) for row in rows if row.arm.role in ("base", "arm", "control") and row.losses}) > 1:
        yield "unequal seeds: a mean loss is over an arm's own seeds; compare arms by their effects, which are paired"
    base, rule = rows[0], study.plan.verdict
    for row in rows:
        if row.arm.role in ("arm", "control"):
            yield from _unpaired(base, row)
            yield from _weakly_paired(base, row, correlation.get(row.arm.name, 1.0))
    yield from said(rows, "changed code", "mixed code")
    yield from said(rows, NOT_CAUSAL, "not causal")
    for row in rows:
        yield from _pruned(row)
    if len(study.plan.seeds) < 3:
        yield f"underpowered: {len(study.plan.seeds)} seeds are planned, and no verdict rests on fewer than 3"
    elif rule["delta"] and math.isfinite(least) and least > rule["delta"] and not study.plan.first_look:
        seeds = len(study.plan.seeds)
        found = f"{seeds} seeds find an effect of {least:.4f} four times of five"
        yield f"underpowered: {found}, and delta is {rule['delta']:g}"
    if unit == "passage":
        yield "few documents: fewer than 10 are in the validation set; verdicts hold for other passages of these alone"
    for row in rows:
        if row.arm.same_as and row.arm.twin == "none" and row.arm.role == "arm":
            yield f"twin: {row.arm.name} says that it is the same as {row.arm.same_as}"
    for arm, key, value in edges(study, tuned) if tuned else ():
        yield f"edge of grid: {arm} is best at {key} = {value}, the end of its grid"


def _changed_words(study: Study, words: Mapping[str, str]) -> Iterator[str]:
    """Yields the verdicts that a look put on record and that runs and rules of today do not give."""
    for look in study.looks:
        for arm, word in look.words.items():
            if words.get(arm) != word:
                now = f"{words.get(arm)} by the runs and the code of today"
                yield f"changed: {arm} was {word} when the study looked after {look.seeds} seeds, and is {now}"


def _later(study: Study) -> Iterator[str]:
    names = [arm.name for arm in study.now.arms if study.is_later(arm.name)]
    seeds = [str(init) for init, data in study.now.seeds if (init, data) not in study.plan.seeds]
    if names:
        yield f"exploratory: added after the study had begun: {', '.join(names)}"
    if seeds:
        yield f"exploratory: seeds added after the study had begun: {', '.join(seeds)}"


def _ends(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for word in ("diverged", "failed"):
            if count := sum(run.status == word for run in row.runs):
                yield f"{word}: {row.arm.name}, {count} of {row.planned} runs"


def _pruned(row: Row) -> Iterator[str]:
    """Yields caveats on runs below their target sparsity, and on runs with a matrix pruned to zero."""
    ends = [run.log.pruning for run in row.runs if run.log and run.log.pruning]
    if missed := [end.sparsity for end in ends if not end.reached]:
        short = f"{len(missed)} of {len(ends)} runs, down to {min(missed):.2%}"
        yield f"sparsity: {row.arm.name} fell short of its target in {short}"
    emptied = [{name for name in end.pruned if end.zeros[name][0] == end.zeros[name][1]} for end in ends]
    if any(emptied):
        names = ", ".join(sorted(set().union(*emptied)))
        yield f"emptied: {row.arm.name} has no weight left of {names} in {sum(map(bool, emptied))} of {len(ends)} runs"


def _unpaired(base: Row, row: Row) -> Iterator[str]:
    """Yields the properties in which an arm's runs differ from the baseline's of the same seeds; the property that an
    A/A arm varies is exempt."""
    of = {(run.init, run.data): run for run in base.runs}
    found: dict[str, int] = {}
    for run in row.runs:
        other = of.get((run.init, run.data))
        for what in _unlike(other, run, row.arm.twin) if other else ():
            found[what] = found.get(what, 0) + 1
    for what, count in found.items():
        yield f"unpaired: {row.arm.name} has another {what} than {base.arm.name} in {count} of {row.planned} seeds"


def _weakly_paired(base: Row, row: Row, r: float) -> Iterator[str]:
    """Yields a warning if an arm's losses hardly follow the baseline's over seeds, with the reason if it is known."""
    if r >= _WEAK or row.arm.twin != "none" or len(row.differences) < 3:
        return
    of = {(run.init, run.data): run for run in base.runs}
    pairs = [(other, run) for run in row.runs if (other := of.get((run.init, run.data)))]
    reasons = dict.fromkeys(what for pair in pairs for what in _unlike(*pair, row.arm.twin))
    why = f"it has another {' and another '.join(reasons)}" if reasons else "its training leaves the baseline's early"
    yield f"weakly paired: {row.arm.name} correlates with {base.arm.name} over seeds by {r:.2f} only: {why}"


def _unlike(a: Reached, b: Reached, twin: str) -> Iterator[str]:
    if not (a.log and b.log and a.log.fingerprints and b.log.fingerprints):
        return
    mine, other = b.log.fingerprints, a.log.fingerprints
    for key, what in (("data", "corpus"), ("order", "order of batches"), ("windows", "set of validation windows")):
        if getattr(mine, key) != getattr(other, key) and not (key == "order" and twin == "order"):
            yield what
    if twin not in ("init", "ulp") and unlike_weights(mine.weights, other.weights):
        yield "start of shared weights"
    if a.log.attention != b.log.attention:
        yield "attention backend"
    yield from _other_machine(a.log.started.environment, b.log.started.environment)


def _other_machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what two environments differ that lets losses of the same seed drift apart; older runs lack some."""
    differ = {key for key in ("torch", "device", "cpu") if a.get(key) and b.get(key) and a[key] != b[key]}
    if "torch" in differ:
        yield "version of torch"
    if "device" in differ:
        yield "kind of device"
    elif "cpu" in differ and a.get("device") == "cpu":
        yield "kind of processor"


def unlike_weights(mine: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Returns the names of tensors with equal shapes and different initial values."""
    shared = [name for name in mine if name in other and mine[name].split()[0] == other[name].split()[0]]
    return [name for name in shared if mine[name] != other[name]]


def said(rows: Sequence[Row], words: str, name: str) -> Iterator[str]:
    """Yields the warnings of runs that contain `words`, each with the arms that gave it."""
    said: dict[str, Any] = {}
    for row in rows:
        for run in row.runs:
            for text in run.log.warnings if run.log else ():
                if words in text:
                    said.setdefault(text, []).append(row.arm.name)
    for text, arms in said.items():
        yield f"{name}: {', '.join(dict.fromkeys(arms))} {text}"
