"""Verdicts on the arms of a study: better, worse, equivalent or inconclusive, at one error rate for all of them.

The rate `alpha` bounds the chance of any false claim of any kind, about any arm, at any look. Three rules divide it:
- over arms: Dunnett's family (`dunnett.Family`) counts every planned arm, whether it still runs or not;
- over kinds of claim: no division, since the claims on an arm are false under exclusive conditions
  (`Family.one_sided`); the equivalence test is thus two one-sided tests, the interval of a difference is two-sided;
- over looks: a spending function (`interim_looks.levels`).

A verdict once given stays, and its arm may stop. Later losses of the arm are not read, except for a divergence, which
withdraws a verdict that it bars. Arms without a verdict run to the planned end, the baseline as long as any of them. An
arm shown to be within delta is called equivalent even if the sign of its effect is certain: the study declared
differences below delta irrelevant.

Claims hold for other seeds. If the noise of the evaluation is given, its variance is added to that of the seeds, and
claims hold for other documents too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ratrain.statistics.arm_seed_model import Effect, Effects, Losses, Table, effects
from ratrain.statistics.dunnett import Family, carried, t_quantile
from ratrain.statistics.interim_looks import FIRST, levels, look_times
from ratrain.statistics.noise import EvaluationNoise

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
    p: float  # adjusted for all arms; to be compared with `level`
    level: float  # of this look's family
    seed_se: float
    evaluation_se: float  # 0 if unknown
    df: float
    seeds: int  # number of blocks read
    diverged: int
    why: str

    @property
    def stops(self) -> bool:
        """Whether the arm need not run more seeds."""
        return self.word != "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """The study after its last look: verdicts in the order of the arms, and the arms that must continue (`open`)."""

    verdicts: tuple[Verdict, ...]
    looks: tuple[int, ...]  # numbers of seeds at the looks so far
    sd: float  # pooled, of residuals
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
    noise: Mapping[str, EvaluationNoise] | None = None,
    blocks: int | None = None,
) -> Judgement:
    """Judges a study after its completed blocks of seeds, by replaying every look from the first.

    `looks` are numbers of seeds, the last one `planned`; by default every one from the third on. Two seeds or fewer
    give no verdict. A block is complete when every arm that still runs has a loss in it (not None); `blocks` overrides
    the count if some losses never come. A loss that is not finite is a diverged run. It bars 'better' and 'equivalent'
    for its arm, and 'worse' and 'equivalent' if it is the baseline's; divergences after a verdict count too.

    Raises ValueError for an alpha outside (0, 0.5), a delta of 0 or less, more seeds than planned, or looks that do not
    end at `planned`.
    """
    table = Table.of(losses, baseline)
    times = look_times(planned) if looks is None else tuple(looks)
    if not 0 < alpha < 0.5 or (delta is not None and delta <= 0):
        raise ValueError(f"alpha is between 0 and 0.5 and delta above 0, got {alpha} and {delta}")
    if table.losses.shape[1] > planned or (times and times[-1] != planned):
        raise ValueError(f"{planned} seeds are planned, got {table.losses.shape[1]} and looks at {times}")
    times = tuple(seeds for seeds in times if seeds >= FIRST)
    at_level = dict(zip(times, levels(len(table.names) - 1, times, alpha, spending) if times else (), strict=True))
    rule = _Rule(alpha, delta, planned, noise or {}, table.diverged.sum(1))
    given: dict[str, Verdict] = {}
    looked = 0
    for seeds, level in at_level.items():
        if seeds > (_complete(table, given) if blocks is None else blocks):
            break
        pool = effects(_until(table, seeds, given))
        last, looked = rule.verdicts(pool, seeds, level), seeds
        given |= {verdict.arm: verdict for verdict in last if verdict.stops and verdict.arm not in given}
    if not looked:  # before the first look: effects without verdicts
        seeds, pool = _complete(table, given) if blocks is None else blocks, effects(table)
        why = _too_early(seeds, times)
        last = [replace(v, word="inconclusive", why=why) for v in rule.verdicts(pool, seeds, alpha)]
    verdicts = tuple(given.get(verdict.arm, verdict) for verdict in last)
    still = () if looked == planned else tuple(verdict.arm for verdict in verdicts if not verdict.stops)
    return Judgement(verdicts, tuple(seeds for seeds in times if seeds <= looked), pool.sd, pool.df, still)


def _complete(table: Table, given: Mapping[str, Verdict]) -> int:
    """Counts the leading blocks in which every arm that still runs has a loss or diverged."""
    running = [name not in given for name in table.names]
    whole = (np.isfinite(table.losses) | table.diverged)[running].all(0)
    return int(np.cumprod(whole).sum())


def _until(table: Table, seeds: int, given: Mapping[str, Verdict]) -> Table:
    """Returns the first `seeds` blocks without the runs of arms after their verdict, which must not matter."""
    y, diverged = table.losses[:, :seeds].copy(), table.diverged[:, :seeds].copy()
    for row, name in enumerate(table.names):
        if name in given:
            y[row, given[name].seeds :], diverged[row, given[name].seeds :] = np.nan, False
    return Table(table.names, y, diverged)


def _too_early(seeds: int, times: Sequence[int]) -> str:
    if not times:
        return f"fewer than {FIRST} seeds are planned, and no verdict rests on so few"
    return f"{seeds} complete block{'s' * (seeds != 1)} of seeds; the first look is after {times[0]}"


@dataclass(frozen=True)
class _Rule:
    """Converts effects to verdicts at one look."""

    alpha: float
    delta: float | None
    planned: int
    noise: Mapping[str, EvaluationNoise]
    lost: np.ndarray  # [A], number of diverged seeds; the baseline's first

    def verdicts(self, found: Effects, seeds: int, level: float) -> list[Verdict]:
        """Returns the verdict on every arm at this level, without regard to earlier looks."""
        family = Family.of(found.correlation, found.df)
        errors = [_combined(arm.se, arm.df, self.noise.get(arm.arm)) for arm in found.arms]
        t = [_t(arm.value, se, df, family.df) for arm, (se, df) in zip(found.arms, errors, strict=True)]
        p, lost = family.p(np.array(t)).tolist(), self.lost[1:].tolist()
        return [
            self._verdict(arm, error, p, lost, family, level, seeds)
            for arm, error, p, lost in zip(found.arms, errors, p, lost, strict=True)
        ]

    def _verdict(
        self, arm: Effect, error: tuple[float, float], p: float, lost: int, family: Family, level: float, seeds: int
    ) -> Verdict:
        noise = self.noise.get(arm.arm)
        steady = _combined(*arm.steady, noise) if arm.steady else error
        interval = _around(arm.value, *error, carry=family.critical(level), df_of=family.df)
        pointwise = _around(arm.value, *error, carry=-t_quantile(self.alpha / 2, family.df), df_of=family.df)
        equivalence = _around(arm.value, *steady, carry=family.one_sided(level), df_of=family.df)
        verdict = Verdict(
            arm.arm, "inconclusive", arm.value, interval, pointwise, equivalence, p if error[1] else math.nan, level,
            arm.se, noise.se if noise else 0.0, error[1], seeds, lost, "",
        )  # fmt: skip
        word, why = self._word(verdict, arm, int(self.lost[0]))
        return replace(verdict, word=word, why="; ".join(filter(None, (why, arm.own, self._scope(arm, noise)))))

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

    @staticmethod
    def _scope(arm: Effect, noise: EvaluationNoise | None) -> str:
        steady = "its differences vary significantly less than the pool, and equivalence is judged by them"
        unknown = "holds for these documents, their noise is not known"
        return "; ".join(filter(None, (steady * (arm.steady is not None), unknown * (noise is None))))


def _lost(diverged: int) -> str:
    return f"{diverged} seed{'s' * (diverged != 1)} diverged" if diverged else ""


def _combined(se: float, df: float, noise: EvaluationNoise | None) -> tuple[float, float]:
    """Returns the standard error and degrees of freedom (Satterthwaite) of seeds and documents combined."""
    if noise is None or not noise.se or not df:
        return se, df
    seed, documents = se**2, noise.se**2
    return math.sqrt(seed + documents), (seed + documents) ** 2 / (seed**2 / df + documents**2 / (noise.documents - 1))


def _t(value: float, se: float, df: float, to: float) -> float:
    """Returns Student's t, converted to `to` degrees of freedom."""
    if not df or not value:
        return 0.0
    return carried(value / se if se else math.copysign(math.inf, value), df, to)


def _around(value: float, se: float, df: float, *, carry: float, df_of: float) -> tuple[float, float]:
    """Returns the interval around `value`; its half-width is `carry` standard errors at `df_of` degrees of freedom,
    converted to `df`."""
    half = carried(carry, df_of, df) * se if df else math.inf
    return value - half, value + half
