"""The tables of a ladder, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ratrain.ablation.ladder.climb import Climbed
from ratrain.ablation.ladder.conclusion import FARTHEST, LadderConclusion, Outlook, predict
from ratrain.ablation.ladder.readings import Reading
from ratrain.ablation.ladder.record import PlannedLadder
from ratrain.ablation.ladder.results import RungResult
from ratrain.statistics.trend import Interval

NONE = "-"
OUTLOOK_HEAD = ("arm", "over the rungs", "at the last rung", "per decade", "next rung, 90 %", "last rung held out")
RUNG_HEAD = ("rung", "layers", "channels", "parameters", "tokens", "FLOPs", "seeds", "cost", "pairs ordered as at last")


def percent(log_gain: float) -> str:
    """Formats a log gain as a change of the tokens: +4.0%."""
    return f"{math.expm1(log_gain):+.1%}"


def span(interval: Interval) -> str:
    low, high = interval
    return f"[{percent(low)}, {percent(high)}]" if math.isfinite(low) and math.isfinite(high) else "[?, ?]"


def outlook_rows(found: LadderConclusion) -> list[tuple[str, ...]]:
    """Returns a row per arm under OUTLOOK_HEAD, those with a trend first."""
    rows = [_outlook(outlook) for outlook in found.outlooks.values()]
    return rows + [(name, why, NONE, NONE, NONE, NONE) for name, why in found.without.items()]


def _outlook(found: Outlook) -> tuple[str, ...]:
    held = found.held_out
    tested = NONE
    if held:
        word = "inside" if held.inside else "OUTSIDE"
        tested = f"{percent(held.measured)} {word} {span(held.interval)}"
    now = f"{percent(found.last)} {span(found.last_interval)}"
    slope = f"{percent(found.slope)} {span(found.slope_interval)}"
    return found.arm, found.word, now, slope, f"{percent(found.next.gain)} {span(found.next.interval)}", tested


def gain_rows(found: LadderConclusion, results: Sequence[RungResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns head and rows of the measured gains: an arm a row, a rung a column."""
    names = list(dict.fromkeys(name for of in found.readings.by_rung for name in of))
    head = ("arm", *(f"rung {result.rung.number}" for result in results), "FLOPs of a run")
    rows = []
    for name in names:
        readings = [of.get(name) for of in found.readings.by_rung]
        costs = [reading.cost for reading in readings if reading]
        rows.append((name, *map(_reading, readings), f"{math.exp(costs[-1]):.3f}" if costs else NONE))
    return head, rows


def _reading(reading: Reading | None) -> str:
    if reading is None:
        return NONE
    if reading.gain is None and reading.pairs < 2:
        return f"{reading.effect:+.3f} nats, 1 pair" if reading.pairs else NONE
    if reading.gain is None:
        return f"beyond the ruler ({reading.effect:+.3f} nats)"
    return f"{percent(reading.gain)} ± {reading.se:.1%}"


def rung_rows(climbed: Climbed) -> list[tuple[str, ...]]:
    """Returns a row per rung under RUNG_HEAD: size, seeds, share of the FLOPs, pairs ordered as at the last rung."""
    spent = [result.flops_spent for result in climbed.results]
    agreement = climbed.conclusion.agreement if climbed.conclusion else ()
    rows = []
    for at, result in enumerate(climbed.results):
        rung = result.rung
        seeds = max((len(row.losses) for row in result.rows if row.arm.role == "base"), default=0)
        alike, pairs = agreement[at] if at < len(agreement) else (0, 0)
        rows.append((
            str(rung.number), str(rung.n_layer), str(rung.n_embd), f"{rung.parameters:,}", f"{rung.tokens:,}",
            f"{rung.flops:.2e}", str(seeds), f"{spent[at] / sum(spent):.1%}" if sum(spent) else NONE,
            f"{alike} of {pairs}" if pairs else NONE,
        ))  # fmt: skip
    return rows


def sentences(climbed: Climbed) -> Iterator[str]:
    """Yields the conclusion in words: held-out rungs, orders, and the cost of the rungs after each."""
    found = climbed.conclusion
    if found is None:
        yield f"no trend yet: {climbed.why}"
        return
    held = [outlook.held_out for outlook in found.outlooks.values() if outlook.held_out]
    if held:
        inside = sum(of.inside for of in held)
        yield f"the last rung, predicted from the others: {inside} of {len(held)} gains inside their 90 % interval"
    spent = [result.flops_spent for result in climbed.results]
    for at, (alike, pairs) in enumerate(found.agreement):
        if pairs:
            saved = sum(spent[at + 1 :]) / sum(spent)
            yield (
                f"stopping after rung {at + 1} would have saved {saved:.0%} of the FLOPs; it orders {alike} of {pairs} "
                "pairs of arms as the last rung does"
            )
    for result in climbed.results:
        for row in result.rows:
            gone = sum(run.status != "done" for run in row.runs if run.ended)
            if gone and row.arm.role in ("base", "ruler"):
                left = f"{gone} of {len(row.runs)} runs of {row.arm.name}"
                yield f"rung {result.rung.number}: {left} are left out, no loss"
    for arm, truth in _planted(climbed):
        yield f"planted: in truth {arm} is worth {truth} of the tokens, rung by rung"
    yield f"learning rates: {rates_text(climbed.ladder.plan)}"
    yield f"next rung: {found.next_flops:.2e} FLOPs; nothing is predicted beyond {FARTHEST:g} x the last rung"


def _planted(climbed: Climbed) -> Iterator[tuple[str, str]]:
    """Yields each planted arm, and its gains at the rungs, in whole steps as they were trained."""
    for name in climbed.ladder.plan.planted:
        arms = [(of.rung, row.arm) for of in climbed.results for row in of.rows if row.arm.name == name]
        yield name, ", ".join(percent(math.log((arm.tokens or 0) / rung.tokens)) for rung, arm in arms if arm.tokens)


def rates_text(plan: PlannedLadder) -> str:
    """Returns how the learning rates were chosen, and the limits of that choice."""
    if plan.rates == "tuned":
        return "tuned at every rung; the ruler's runs keep the rate of the file"
    if len({rung.batch for rung in plan.rungs}) > 1:
        return f"{plan.rates}, with batch sizes that differ over the rungs, for which no rate is transferred"
    return plan.rates


def predictions(climbed: Climbed, at: Sequence[float]) -> list[tuple[str, ...]]:
    """Returns head and rows of the gains predicted at `at` FLOPs, which are not too far beyond the last rung."""
    found, last = climbed.conclusion, climbed.ladder.plan.rungs[-1].flops
    if not at or found is None:
        return []
    rows = [
        (name, *(f"{percent(p.gain)} {span(p.interval)}" for p in (predict(found, name, f, last=last) for f in at)))
        for name in found.outlooks
    ]
    return [("arm", *(f"{flops:.3g} FLOPs" for flops in at)), *rows]
