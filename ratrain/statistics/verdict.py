"""Verdicts on the arms of a study: better, worse, equivalent or inconclusive, at one error rate for all of them.

The rate `alpha` bounds the chance of any false claim of any kind, about any arm, at any look. Three rules divide it:
- over arms: each planned arm has the share alpha / arms, whether it still runs or not (Bonferroni). This holds for
  unequal variances and for any dependence, so for the shared baseline too. Dunnett's multivariate t needs the
  correlations and gains 2 % in the bound for twenty arms. Holm's method must not pass on the share of an arm that is
  called equivalent, since that claim can be false too (figures: docs/studies.md);
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ratrain.statistics.interim_looks import FIRST, levels, look_times
from ratrain.statistics.paired import Effect, Losses, Parts, Table, effects

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

    Raises ValueError for an alpha outside (0, 0.5), a delta of 0 or less, more seeds than planned, or looks that do not
    end at `planned`.
    """
    table = Table.of(losses, baseline, parts, sizes)
    times = look_times(planned) if looks is None else tuple(looks)
    if not 0 < alpha < 0.5 or (delta is not None and delta <= 0):
        raise ValueError(f"alpha is between 0 and 0.5 and delta above 0, got {alpha} and {delta}")
    if table.losses.shape[1] > planned or (times and times[-1] != planned):
        raise ValueError(f"{planned} seeds are planned, got {table.losses.shape[1]} and looks at {times}")
    times = tuple(seeds for seeds in times if seeds >= FIRST)
    arms = len(table.names) - 1
    at_level = dict(zip(times, levels(times, alpha / arms, spending) if times else (), strict=True))
    rule = _Rule(alpha, delta, planned, arms, at_level.get(planned, 0.0), table.diverged.sum(1))
    given: dict[str, Verdict] = {}
    looked = 0
    for seeds, level in at_level.items():
        if seeds > (_complete(table, given) if blocks is None else blocks):
            break
        last, looked = rule.verdicts(_known(table, seeds, given), seeds, level), seeds
        given |= {verdict.arm: verdict for verdict in last if verdict.stops and verdict.arm not in given}
    if not looked:  # before the first look: effects without verdicts
        seeds = _complete(table, given) if blocks is None else blocks
        why = _too_early(seeds, times)
        last = [replace(v, word="inconclusive", why=why) for v in rule.verdicts(effects(table), seeds, alpha / arms)]
    verdicts = tuple(given.get(verdict.arm, verdict) for verdict in last)
    still = () if looked == planned else tuple(verdict.arm for verdict in verdicts if not verdict.stops)
    known = [(v.sd, v.df) for v in last if v.df]
    sd, df = np.median(known, 0).tolist() if known else (math.nan, 0.0)
    return Judgement(verdicts, tuple(seeds for seeds in times if seeds <= looked), sd, df, still)


def _known(table: Table, seeds: int, given: Mapping[str, Verdict]) -> list[Effect]:
    """Estimates effects from the first `seeds` blocks, without runs of arms after their verdict, which must not
    matter."""
    return effects(table.until(seeds, {name: verdict.seeds for name, verdict in given.items()}))


def _complete(table: Table, given: Mapping[str, Verdict]) -> int:
    """Counts the leading blocks in which every arm that still runs has a loss or diverged."""
    running = [name not in given for name in table.names]
    whole = (np.isfinite(table.losses) | table.diverged)[running].all(0)
    return int(np.cumprod(whole).sum())


def _too_early(seeds: int, times: Sequence[int]) -> str:
    if not times:
        return f"fewer than {FIRST} seeds are planned, and no verdict rests on so few"
    return f"{seeds} complete block{'s' * (seeds != 1)} of seeds; the first look is after {times[0]}"


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
    last: float  # level of an arm at the last look; 0 without a look
    lost: np.ndarray  # [A], number of diverged seeds; the baseline's first

    def verdicts(self, found: Sequence[Effect], seeds: int, level: float) -> list[Verdict]:
        """Returns the verdict on every arm at this level of its own, without regard to earlier looks."""
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
            arm.arm, "inconclusive", arm.value, around(level), around(self.alpha), around(2 * level), p,
            self.arms * level, sd, se, evaluation, df, self._detectable(arm), seeds, lost, "",
        )  # fmt: skip
        word, why = self._word(verdict, arm, int(self.lost[0]))
        unknown = "" if arm.noise else "holds for these documents, their noise is not known"
        return replace(verdict, word=word, why="; ".join(filter(None, (why, unknown))))

    def _detectable(self, arm: Effect) -> float:
        if not self.last or arm.seeds is None:
            return math.inf
        spread = arm.seeds.scaled(arm.pairs / self.planned)
        spread = spread.plus(arm.noise.se**2, arm.noise.documents - 1) if arm.noise else spread
        half, beyond = spread.half_width(self.last), spread.half_width(2 * (1 - POWER))
        return (half + beyond) / _mean_estimate(spread.freedom())

    def _word(self, v: Verdict, arm: Effect, base_lost: int) -> tuple[Word, str]:
        odds = f"p {v.p:.2g} against {v.level:.2g} after {v.seeds} of {self.planned} seeds"
        if arm.pairs < FIRST:
            return "inconclusive", f"{arm.pairs} seeds finished beside the baseline; {_lost(v.diverged) or 'too few'}"
        if self.delta is not None and -self.delta < v.equivalence[0] and v.equivalence[1] < self.delta:
            sign = f", though the difference is not zero ({odds})" if v.interval[0] * v.interval[1] > 0 else ""
            if not (v.diverged or base_lost):
                return "equivalent", f"within {self.delta:g} after {v.seeds} of {self.planned} seeds{sign}"
        if v.interval[1] < 0:
            if v.diverged:
                return "inconclusive", f"{_lost(v.diverged)}, which bars 'better'; the others are better ({odds})"
            return "better", odds
        if v.interval[0] > 0:
            if base_lost:
                return "inconclusive", f"the baseline: {_lost(base_lost)}, which bars 'worse'; {odds}"
            return "worse", "; ".join(filter(None, (odds, _lost(v.diverged))))
        return "inconclusive", "; ".join(filter(None, (odds, _lost(v.diverged))))


def _lost(diverged: int) -> str:
    return f"{diverged} seed{'s' * (diverged != 1)} diverged" if diverged else ""
