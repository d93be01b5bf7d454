"""Verdicts on the arms of a study: better, worse, equivalent or inconclusive, at one error rate for all of them.

The rate `alpha` bounds the chance of any false claim of any kind, about any arm, at any look. Three rules divide it:
- over arms: each planned arm has the share alpha / arms, whether it still runs or not (Bonferroni). This holds for
  unequal variances and for any dependence, so for the shared baseline too. Dunnett's multivariate t needs the
  correlations and gains 2 % in the bound for twenty arms. Holm's method must not pass on the share of an arm that is
  called equivalent, since that claim can be false too (figures: docs/verdicts.md);
- over kinds of claim: no division. A claim on an arm can be false in three exclusive ways: the effect is zero and the
  arm is called better or worse; or it is at least delta, or at most -delta, and the arm is called equivalent. Each way
  is therefore tested at the arm's full share (the partitioning principle; Goeman, Solari & Stijnen, Statistics in
  Medicine 29, 2010), so that the equivalence test is one-sided;
- over looks: a spending function (`interim_looks.levels`).

A verdict once given stays, and its arm may stop. Later losses of the arm are not read, except for a divergence, which
withdraws a verdict that it bars. Arms without a verdict run to the planned end, the baseline as long as any of them. An
arm shown to be within delta is called equivalent even if the sign of its effect is certain: the study declared
differences below delta irrelevant.

Claims hold for other seeds. With losses by document the noise of the evaluation is added, and claims hold for other
documents too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ratrain.statistics.interim_looks import FIRST, levels, look_times
from ratrain.statistics.paired import Effect, Losses, Parts, Table, effects

_UNKNOWN = (-math.inf, math.inf)
POWER = 0.8  # of the effect that counts as detectable
Word = Literal["better", "worse", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one arm; the effect is its loss minus the baseline's, in nats."""

    arm: str
    word: Word
    effect: float
    interval: tuple[float, float]  # holds for all arms and looks together
    pointwise: tuple[float, float]  # at level alpha, for this arm and look alone
    equivalence: tuple[float, float]  # the arm is equivalent if this lies within delta
    p: float  # times the number of arms; to be compared with `level`
    level: float  # of all arms together, at this look
    sd: float  # standard deviation of a paired difference, moderated
    seed_se: float
    evaluation_se: float  # 0 if unknown
    df: float  # of the error at this level, the prior's included
    detectable: float  # effect that the planned seeds find four times of five, at this noise; infinite below 3 seeds
    seeds: int  # number of blocks read
    diverged: int
    why: str
    barred: tuple[Word, ...] = ()  # words that diverged runs rule out, whatever other seeds say

    @property
    def stops(self) -> bool:
        """Whether the arm need not run more seeds."""
        return self.word != "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """The study after its last look: verdicts in the order of the arms, and the arms that must continue (`open`).

    `sd` is the median over arms of the standard deviation of a paired difference, `df` that of its degrees of freedom.
    """

    verdicts: tuple[Verdict, ...]
    looks: tuple[int, ...]  # numbers of seeds at the looks so far
    sd: float
    df: float
    open: tuple[str, ...]

    def __getitem__(self, arm: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.arm == arm)


def judge(
    losses: Losses,
    baseline: str,
    *,
    planned: int,
    alpha: float = 0.05,
    delta: float | None = None,
    spending: str = "obrien_fleming",
    looks: Sequence[int] | None = None,
    shares: Sequence[float] | None = None,
    running: Sequence[Collection[str]] | None = None,
    first: int = FIRST,
    parts: Parts | None = None,
    sizes: Sequence[int] = (),
    blocks: int | None = None,
) -> Judgement:
    """Judges a study after its completed blocks of seeds, by replaying every look from the first on its own data.

    `looks` are numbers of seeds, the last one `planned`; by default every one from the third on. Two seeds or fewer
    give no verdict. `parts` are losses by document, of `sizes` tokens. A block is complete when every arm that still
    runs has a loss in it (not None); `blocks` overrides the count if some losses never come. A loss that is not finite
    is a diverged run. It bars 'better' and 'equivalent' for its arm, and 'worse' and 'equivalent' if it is the
    baseline's; divergences after a verdict count too.

    A study with seeds as needed passes the looks that it has had, with the share of alpha's spending time at each (1 at
    its end) and the arms that ran up to each (`running`); `planned` is then the number of seeds that it can reach, and
    `first` that of its first look. An arm that did not run up to a look keeps what it had.

    Raises ValueError for an alpha outside (0, 0.5), a delta of 0 or less, more seeds than planned, or looks without
    shares that do not end at `planned`.
    """
    table = Table.of(losses, baseline, parts, sizes)
    times = look_times(planned) if looks is None else tuple(looks)
    if not 0 < alpha < 0.5 or (delta is not None and delta <= 0):
        raise ValueError(f"alpha is between 0 and 0.5 and delta above 0, got {alpha} and {delta}")
    fits = not times or times[-1] == planned or (shares is not None and times[-1] < planned)
    if table.losses.shape[1] > planned or not fits:
        raise ValueError(f"{planned} seeds are planned, got {table.losses.shape[1]} and looks at {times}")
    schedule = _Schedule.of(times, shares, planned, alpha / (len(table.names) - 1), spending)
    rule = _Rule(alpha, delta, planned, len(table.names) - 1, schedule, table.diverged.sum(1))
    found = _replayed(table, rule, running, blocks)
    if not found.looked:
        found = _before_the_first_look(table, rule, blocks, first)
    sd, df = np.median(found.sds, 0).tolist() if found.sds else (math.nan, 0.0)
    over = found.looked == (max(schedule.levels, default=0) if schedule.ends else planned)
    ran = running[-1] if running else found.last
    still = [name for name in found.last if name not in found.given and name in ran and not over]
    looks = tuple(seeds for seeds in schedule.levels if seeds <= found.looked)
    whole = tuple(rule.whole(found.last[name], found.estimates[name]) for name in table.names[1:])
    return Judgement(whole, looks, sd, df, tuple(still))


@dataclass
class _Replayed:
    """The looks of a study so far: the verdicts given, every arm's last one with its estimate, and the number of seeds
    at the last look."""

    given: dict[str, Verdict]
    last: dict[str, Verdict]
    estimates: dict[str, Effect]
    looked: int
    sds: list[tuple[float, float]]  # of the arms at the last look: standard deviation, degrees of freedom


def _replayed(table: Table, rule: _Rule, running: Sequence[Collection[str]] | None, blocks: int | None) -> _Replayed:
    """Replays every look whose blocks of seeds are complete."""
    past = _Replayed({}, {}, {}, 0, [])
    for look, (seeds, level) in enumerate(rule.schedule.levels.items()):
        if seeds > (_complete(table, past.given) if blocks is None else blocks):
            break
        still = [name for name in table.names[1:] if name not in past.given and (not running or name in running[look])]
        stopped = {n: past.last[n].seeds if n in past.last else 0 for n in table.names[1:] if n not in still}
        known = effects(table.until(seeds, stopped))
        found, past.looked = rule.verdicts(known, seeds, level), seeds
        for verdict, effect in zip(found, known, strict=True):
            if verdict.arm in still or verdict.arm not in past.last:
                past.last[verdict.arm], past.estimates[verdict.arm] = verdict, effect
        past.given |= {name: past.last[name] for name in still if past.last[name].stops}
        past.sds = [(verdict.sd, verdict.df) for verdict in found if verdict.df]
    return past


def _before_the_first_look(table: Table, rule: _Rule, blocks: int | None, first: int) -> _Replayed:
    """Returns effects without verdicts."""
    seeds, known = _complete(table, ()) if blocks is None else blocks, effects(table)
    why = _too_early(seeds, rule.schedule, first)
    found = [replace(v, word="inconclusive", why=why) for v in rule.verdicts(known, seeds, rule.alpha / rule.arms)]
    last, estimates = {v.arm: v for v in found}, {effect.arm: effect for effect in known}
    return _Replayed({}, last, estimates, 0, [(v.sd, v.df) for v in found if v.df])


@dataclass(frozen=True)
class _Schedule:
    """The level of an arm at each look, by seeds, and at the last look of the plan, 0 if there is none."""

    levels: dict[int, float]
    last: float
    planned: int
    fixed: bool  # whether the number of seeds was fixed in advance
    ends: bool  # whether the last look of `levels` ends the study

    @classmethod
    def of(
        cls, looks: Sequence[int], shares: Sequence[float] | None, planned: int, alpha: float, spending: str
    ) -> _Schedule:
        spent = [1.0] * len(looks) if shares is None else shares
        some = [(seeds, share) for seeds, share in zip(looks, spent, strict=True) if seeds >= FIRST]
        times, parts = tuple(seeds for seeds, _ in some), tuple(share for _, share in some)
        at = levels(times, alpha, spending, None if shares is None else parts) if times else ()
        ends = shares is None or (bool(parts) and parts[-1] == 1.0)
        last = at[-1] if at else 0.0
        if not ends and planned >= FIRST:
            ahead = times if times and times[-1] == planned else (*times, planned)
            last = levels(ahead, alpha, spending, (*parts[: len(ahead) - 1], 1.0))[-1]
        return cls(dict(zip(times, at, strict=True)), last, planned, shares is None, ends)

    def after(self, seeds: int) -> str:
        return f"after {seeds} of {self.planned} seeds" if self.fixed else f"after {seeds} seeds"


def _complete(table: Table, stopped: Collection[str]) -> int:
    """Counts the leading blocks in which every arm that still runs has a loss or diverged."""
    running = [name not in stopped for name in table.names]
    whole = (np.isfinite(table.losses) | table.diverged)[running].all(0)
    return int(np.cumprod(whole).sum())


def _too_early(seeds: int, schedule: _Schedule, first: int) -> str:
    if schedule.planned < FIRST:
        return f"fewer than {FIRST} seeds are planned, and no verdict rests on so few"
    first = min(schedule.levels, default=first)
    return f"{seeds} complete block{'s' * (seeds != 1)} of seeds; the first look is after {first}"


def _mean_estimate(df: float) -> float:
    """Returns the mean of an estimated standard deviation with `df` degrees of freedom over the true one."""
    return math.sqrt(2 / df) * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2))


@dataclass(frozen=True)
class _Rule:
    """Converts effects to verdicts at one look."""

    alpha: float
    delta: float | None
    planned: int
    arms: int
    schedule: _Schedule
    lost: np.ndarray  # [A], number of diverged seeds; the baseline's first

    def verdicts(self, found: Sequence[Effect], seeds: int, level: float) -> list[Verdict]:
        """Returns the verdict on every arm at this level of its own, without regard to earlier looks, and without the
        figures that no rule needs (`whole`)."""
        lost = self.lost[1:].tolist()
        return [self._verdict(arm, count, level, seeds) for arm, count in zip(found, lost, strict=True)]

    def _verdict(self, arm: Effect, lost: int, level: float, seeds: int) -> Verdict:
        evaluation, spread = arm.noise.se if arm.noise else 0.0, arm.spread

        def around(share: float) -> tuple[float, float]:
            half = spread.half_width(share) if spread else math.inf
            return arm.value - half, arm.value + half

        se = arm.seeds.sd if arm.seeds else math.nan
        p = min(1.0, self.arms * spread.tail(arm.value)) if spread else math.nan
        df, sd = spread.freedom(level) if spread else 0.0, se * math.sqrt(arm.pairs)
        verdict = Verdict(
            arm.arm, "inconclusive", arm.value, around(level), _UNKNOWN, around(2 * level), p, self.arms * level,
            sd, se, evaluation, df, math.inf, seeds, lost, "",
            _barred(lost, int(self.lost[0])),
        )  # fmt: skip
        word, why = self._word(verdict, arm, int(self.lost[0]))
        unknown = "" if arm.noise else "holds for these documents, their noise is not known"
        return replace(verdict, word=word, why="; ".join(filter(None, (why, unknown))))

    def whole(self, verdict: Verdict, arm: Effect) -> Verdict:
        """Returns the verdict with the interval of the arm alone and with the detectable effect."""
        half = arm.spread.half_width(self.alpha) if arm.spread else math.inf
        pointwise = (arm.value - half, arm.value + half)
        return replace(verdict, pointwise=pointwise, detectable=self._detectable(arm))

    def _detectable(self, arm: Effect) -> float:
        last = self.schedule.last
        if not last or arm.seeds is None:
            return math.inf
        spread = arm.seeds.scaled(arm.pairs / self.planned)
        spread = spread.plus(arm.noise.se**2, arm.noise.documents - 1) if arm.noise else spread
        half, beyond = spread.half_width(last), spread.half_width(2 * (1 - POWER))
        return (half + beyond) / _mean_estimate(spread.freedom())

    def _word(self, v: Verdict, arm: Effect, base_lost: int) -> tuple[Word, str]:
        odds = f"p {v.p:.2g} against {v.level:.2g} {self.schedule.after(v.seeds)}"
        if arm.pairs < FIRST:
            return "inconclusive", f"{arm.pairs} seeds finished beside the baseline; {_lost(v.diverged) or 'too few'}"
        if self.delta is not None and -self.delta < v.equivalence[0] and v.equivalence[1] < self.delta:
            sign = f", though the difference is not zero ({odds})" if v.interval[0] * v.interval[1] > 0 else ""
            if not (v.diverged or base_lost):
                return "equivalent", f"within {self.delta:g} {self.schedule.after(v.seeds)}{sign}"
        if v.interval[1] < 0:
            if v.diverged:
                return "inconclusive", f"{_lost(v.diverged)}, which bars 'better'; the others are better ({odds})"
            return "better", odds
        if v.interval[0] > 0:
            if base_lost:
                return "inconclusive", f"the baseline: {_lost(base_lost)}, which bars 'worse'; {odds}"
            return "worse", "; ".join(filter(None, (odds, _lost(v.diverged))))
        return "inconclusive", "; ".join(filter(None, (odds, _lost(v.diverged))))


def _barred(arm_lost: int, base_lost: int) -> tuple[Word, ...]:
    words: tuple[tuple[Word, bool], ...] = (
        ("better", arm_lost > 0), ("worse", base_lost > 0), ("equivalent", arm_lost + base_lost > 0),
    )  # fmt: skip
    return tuple(word for word, barred in words if barred)


def _lost(diverged: int) -> str:
    return f"{diverged} seed{'s' * (diverged != 1)} diverged" if diverged else ""
