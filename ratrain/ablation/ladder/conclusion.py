"""The conclusion of a ladder: whether each arm's gain grows, holds, shrinks or vanishes, and the next rung's interval.

Each interval behind a word is at the level alpha / arms (Bonferroni over the arms, not over the intervals of an arm).
Intervals of predictions are those of one arm, 90 % each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, get_args

from ratrain.ablation.ladder.manifest import FEWEST, FEWEST_SEEDS
from ratrain.ablation.ladder.readings import Readings, RungLosses, read_gains
from ratrain.statistics.trend import Interval, Trend, trends
from ratrain.strict_json import strict_json

LEVEL = 0.1  # of intervals of predictions: 90 %
FARTHEST = 10.0  # times the last rung's compute: beyond it nothing is predicted
Word = Literal[
    "gain grows", "gain holds", "gain shrinks", "gain vanishes", "gain, trend unclear",
    "loss grows", "loss holds", "loss shrinks", "loss vanishes", "loss, trend unclear",
    "gain turns into loss", "loss turns into gain", "no difference", "inconclusive",
]  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """A log gain at a compute: the mean, and the 90 % interval for a rung there, its own misfit included."""

    flops: float
    gain: float
    interval: Interval


@dataclass(frozen=True)
class HeldOut:
    """The last rung as the others predict its measurement, and as it was measured; log gains."""

    predicted: float
    interval: Interval
    measured: float

    @property
    def inside(self) -> bool:
        return self.interval[0] <= self.measured <= self.interval[1]


@dataclass(frozen=True)
class Outlook:
    """The trend of one arm. `slope` is the change of the log gain per decade of compute, `last` the log gain of the
    last rung; their intervals are at the level alpha over the arms. `vanishes` is the compute at which the trend
    crosses zero, None beyond ten times the last rung's. `misfit` is the rungs' deviation from the line, in log tokens.
    """

    arm: str
    word: Word
    why: str
    slope: float
    slope_interval: Interval
    last: float
    last_interval: Interval
    next: Predicted
    vanishes: float | None
    misfit: float
    held_out: HeldOut | None
    trend: Trend


@dataclass(frozen=True)
class LadderConclusion:
    """The outlook of every arm, the readings behind it, and the arms without a trend with the reason.

    `agreement` holds for each rung but the last the number of pairs of arms that it orders as the last does, and the
    number of pairs; planted arms and equal gains are left out.
    """

    readings: Readings
    outlooks: dict[str, Outlook]
    without: dict[str, str]
    agreement: tuple[tuple[int, int], ...]
    next_flops: float

    def record(self) -> dict[str, Any]:
        """The conclusion as strict JSON; gains are logarithms of factors on the baseline's tokens."""
        arms = {}
        for name, found in self.outlooks.items():
            facts = {key: value for key, value in vars(found).items() if key not in ("trend", "next", "held_out")}
            held = found.held_out
            arms[name] = facts | {
                "next": asdict(found.next), "held_out": asdict(held) | {"inside": held.inside} if held else None,
            }  # fmt: skip
        rungs = [{name: asdict(reading) for name, reading in of.items()} for of in self.readings.by_rung]
        facts = {"arms": arms, "without": self.without, "rungs": rungs, "agreement": self.agreement}
        return strict_json({**facts, "next_flops": self.next_flops})


def conclude_ladder(
    rungs: Sequence[RungLosses], *, alpha: float, delta: float | None, arms: int | None = None,
    planted: Collection[str] = (),
) -> LadderConclusion:  # fmt: skip
    """Concludes from the losses of all rungs; `arms` is the number of planned arms, by default of those present, and
    `planted` names those whose truth is known.

    Raises ValueError for fewer than four rungs, and if the baseline's curve cannot be had.
    """
    if len(rungs) < FEWEST:
        raise ValueError(f"{len(rungs)} rungs are done; a trend needs {FEWEST} or more")
    readings = read_gains(rungs)
    without = {name: why for name in _names(readings) if (why := _lacks(name, readings, rungs))}
    usable = {name: of for name, of in readings.measured.items() if name not in without}
    next_flops = _next([rung.flops for rung in rungs])
    level = alpha / max(1, arms or len(_names(readings)))
    found = trends(usable)
    held = _held_out(readings, usable)
    same = _same(readings, delta)
    outlooks = {
        name: _outlook(name, trend, rungs, next_flops, level, same, held.get(name)) for name, trend in found.items()
    }
    return LadderConclusion(readings, outlooks, without, _agreement(readings, planted), next_flops)


def _names(readings: Readings) -> list[str]:
    return list(dict.fromkeys(name for of in readings.by_rung for name in of))


def _lacks(name: str, readings: Readings, rungs: Sequence[RungLosses]) -> str:
    """Returns the reason why an arm has no trend; empty if it has one."""
    for rung, of in zip(rungs, readings.by_rung, strict=True):
        if (reading := of.get(name)) is None:
            failed = rung.failed.get(name, 0)
            fate = f"{_many(failed, 'run')} failed" if failed else "not run"
            return f"{fate} at rung {rung.number}"
        if reading.diverged:
            return f"{_many(reading.diverged, 'run')} diverged at rung {rung.number}"
        if reading.pairs < FEWEST_SEEDS:
            return f"{_many(reading.pairs, 'seed')} at rung {rung.number}; expected {FEWEST_SEEDS} or more"
        if reading.gain is None:
            side = "better" if reading.effect < 0 else "worse"
            return f"so much {side} at rung {rung.number} ({reading.effect:+.3f} nats) that the ruler does not reach it"
    return ""


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _next(flops: Sequence[float]) -> float:
    """Returns the compute of the rung after the last: as far from it as the last from the one before, 10 x at most."""
    return flops[-1] * min(FARTHEST, flops[-1] / flops[-2])


def _same(readings: Readings, delta: float | None) -> Interval | None:
    """Returns the log gains at the last rung of the differences that just do not matter, worse and better."""
    if not delta:
        return None
    worse, better = (readings.curves[-1].gain(effect) for effect in (delta, -delta))
    return (worse.value, better.value) if worse and better else None


def _outlook(
    name: str, trend: Trend, rungs: Sequence[RungLosses], next_flops: float, level: float, same: Interval | None,
    held: HeldOut | None,
) -> Outlook:  # fmt: skip
    first, last, after = (math.log10(flops) for flops in (rungs[0].flops, rungs[-1].flops, next_flops))
    slope, then = trend.slope(), trend.line(after)
    before, now = trend.measured_rung(0), trend.measured_rung(len(rungs) - 1)
    moved, at_last, at_next, at_first = (part.interval(level) for part in (slope, now, then, before))
    word = _word(moved, at_last, at_next, at_first, same)
    ahead = trend.rung(after)
    falls = any(part in word for part in ("shrinks", "vanishes", "turns"))
    crossing = _crossing(trend, first, last) if falls else None
    why = _why(word, slope.mean, then.mean, crossing, rungs)
    return Outlook(
        name, word, why, slope.mean, moved, now.mean, at_last,
        Predicted(next_flops, ahead.mean, ahead.interval(LEVEL)), crossing, trend.tau(), held, trend,
    )  # fmt: skip


def _sign(interval: Interval) -> int:
    """Returns the sign that is certain, 0 if none is."""
    return 1 if interval[0] > 0 else -1 if interval[1] < 0 else 0


def _inside(same: Interval, *intervals: Interval) -> bool:
    return all(same[0] < low and high < same[1] for low, high in intervals)


def _word(slope: Interval, now: Interval, then: Interval, before: Interval, same: Interval | None) -> Word:
    """Returns the word for the certain signs of slope and of the gain at the last, the next and the first rung."""
    moves, is_now, later, earlier = _sign(slope), _sign(now), _sign(then), _sign(before)
    if same and _inside(same, now, then) and (not moves or _inside(same, before)):
        return "no difference"  # nor a sure one that does not matter
    turns: dict[int, Word] = {1: "gain turns into loss", -1: "loss turns into gain"}
    if earlier and is_now == -earlier:
        return turns[earlier]
    sign = is_now or (earlier if moves == -earlier else 0)
    if not sign:
        return "inconclusive"
    side = "gain" if sign > 0 else "loss"
    if moves == -sign:
        word = "shrinks" if is_now == sign else "vanishes"
    elif moves == sign:
        word = "grows"
    else:
        word = "holds" if later == sign else "trend unclear"
    return next(known for known in get_args(Word) if known.startswith(side) and known.endswith(word))


def _crossing(trend: Trend, first: float, last: float) -> float | None:
    """Returns the compute at which the mean trend crosses zero, from the first rung to ten times the last."""
    slope = trend.slope().mean
    if not slope:
        return None
    at = trend.origin - trend.line(trend.origin).mean / slope
    return 10**at if first <= at <= last + math.log10(FARTHEST) else None


def _why(word: Word, slope: float, then: float, crossing: float | None, rungs: Sequence[RungLosses]) -> str:
    decades = math.log10(rungs[-1].flops / rungs[0].flops)
    told = f"{math.expm1(slope):+.1%} of the tokens per decade over {decades:.1f} decades"
    if crossing is not None:
        return f"{told}; zero at {crossing:.2g} FLOPs"
    if "shrinks" in word or "vanishes" in word:
        return f"{told}; zero beyond {FARTHEST:g} x the last rung, which is not predicted"
    return f"{told}; {math.expm1(then):+.1%} at the next rung"


def _held_out(readings: Readings, usable: Mapping[str, Any]) -> dict[str, HeldOut]:
    """Predicts the measurement of the last rung from the others, for every arm."""
    last, found = len(readings.by_rung) - 1, {}
    fits = trends({name: readings.measured[name].at(range(last)) for name in usable}) if usable else {}
    for name, trend in fits.items():
        of = readings.measured[name]
        own = trend.reading(float(of.x[last]), of.seeds[last], float(of.shared[last, last]), of.shared[last, :last])
        found[name] = HeldOut(own.mean, own.interval(LEVEL), float(of.gains[last]))
    return found


def _agreement(readings: Readings, planted: Collection[str]) -> tuple[tuple[int, int], ...]:
    """Counts for each rung but the last the pairs of arms that it orders as the last does, and the pairs."""
    gains = [
        {name: reading.gain for name, reading in of.items() if reading.gain is not None and name not in planted}
        for of in readings.by_rung
    ]
    *before, last = gains
    found = []
    for of in before:
        both = [(of[a] - of[b], last[a] - last[b]) for a, b in combinations(of.keys() & last.keys(), 2)]
        apart = [(here, there) for here, there in both if here and there]
        found.append((sum((here > 0) == (there > 0) for here, there in apart), len(apart)))
    return tuple(found)


def predict(conclusion: LadderConclusion, arm: str, flops: float, *, last: float) -> Predicted:
    """Predicts an arm's gain at a compute from that of the first rung on.

    Raises ValueError beyond ten times that of the last rung, `last`.
    """
    if not 0 < flops <= FARTHEST * last:
        raise ValueError(f"{flops:.3g} FLOPs are more than {FARTHEST:g} x the last rung's {last:.3g}: not predicted")
    ahead = conclusion.outlooks[arm].trend.rung(math.log10(flops))
    return Predicted(flops, ahead.mean, ahead.interval(LEVEL))
