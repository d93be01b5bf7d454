"""The resolution of a scale: the noise of a paired difference over the loss that one per cent of the tokens is worth.

`plan` turns it into seeds, runs and device time for an effect in per cent of the tokens, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ratrain.statistics.power import expected_seeds, power

MOST = 200  # seeds
_LOOKS = 40  # at most, so that many seeds are looked at less often


@dataclass(frozen=True)
class Resolution:
    """What is known of a scale.

    `sd` is the standard deviation of one run's loss over seeds, in nats; `r` the correlation of paired seeds, `slope`
    the loss in nats that one per cent more tokens saves. `tokens` is the budget of a run, `rate` tokens/s of one device
    (0: unknown). `source` says where the figures come from.
    """

    sd: float
    r: float
    slope: float
    tokens: int
    rate: float
    source: str
    across: float | None = None  # correlation of paired seeds on two kinds of GPU

    @property
    def paired_sd(self) -> float:
        """The standard deviation of a paired difference, in nats."""
        return self.sd * math.sqrt(2 * (1 - self.r))

    @property
    def percent(self) -> float:
        """The standard deviation of a paired difference in per cent of the tokens."""
        return self.paired_sd / self.slope


KNOWN = {
    "study": Resolution(
        0.0166, 0.89, 0.0045, 150_016, 18_000,
        "eight seeds of V0, an output gate, V9 and V19 at this scale, on one thread of a server CPU (docs/verdicts.md)",
    ),
    "study_2026_11": Resolution(
        0.0226, 0.89, 0.0036, 600_064, 26_000, "three seeds of the arms of the V-series (docs/series.md)"
    ),
    "gpt2_124m": Resolution(
        0.0013, 0.85, 0.00146, 10_000_000_000, 571_000,
        "public runs of GPT-2 124M to a loss of 3.28 (modded-nanogpt: 1.34 mnat over ten runs, pull request 323); r "
        "0.83 to 0.87 with the same initial weights and batches; 571k tokens/s is modelled for an H200, not measured",
        across=0.46,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The cost of a study under one kind of pairing: seeds fixed in advance, seeds as needed on average, runs, tokens,
    and hours of one device; None where more than 200 seeds are needed, or the rate is unknown."""

    pairing: str
    r: float
    percent: float
    seeds: int | None
    as_needed: float | None
    runs: int | None
    tokens: float | None
    hours: float | None


def rows(scale: Resolution, effect: float, *, arms: int, wanted: float, alpha: float = 0.05) -> Iterator[Row]:
    """Yields a row per kind of pairing, for an effect in per cent of the tokens that is to be found with the power
    `wanted` in each of `arms` arms."""
    across = [("the same, on another kind of GPU", scale.across)] if scale.across is not None else []
    for words, r in (("same initial weights and batches", scale.r), *across, ("nothing: unpaired", 0.0)):
        paired = replace(scale, r=r)
        ratio = effect / paired.percent
        seeds = seeds_for(ratio, arms=arms, wanted=wanted, alpha=alpha)
        if seeds is None:
            yield Row(words, paired.r, paired.percent, None, None, None, None, None)
            continue
        runs = seeds * (arms + 1)
        tokens = float(runs) * scale.tokens
        mean = expected_seeds(ratio, 1.0, arms=arms, seeds=seeds, alpha=alpha, looks=looks(seeds))
        hours = tokens / scale.rate / 3600 if scale.rate else None
        yield Row(words, paired.r, paired.percent, seeds, mean, runs, tokens, hours)


def looks(seeds: int) -> tuple[int, ...]:
    """Returns the looks of a study of so many seeds: after each from the third on, or forty of them."""
    step = max(1, math.ceil((seeds - 2) / _LOOKS))
    return tuple(range(seeds, 2, -step))[::-1]


def seeds_for(ratio: float, *, arms: int, wanted: float, alpha: float = 0.05) -> int | None:
    """Returns the least number of seeds that finds an effect of `ratio` standard deviations of a paired difference with
    the power `wanted`, with a look after each; None if it is above 200."""

    def enough(seeds: int) -> bool:
        return power(ratio, 1.0, arms=arms, seeds=seeds, alpha=alpha, spending="linear", looks=looks(seeds)) >= wanted

    low, high = 2, 4
    while not enough(high):
        low, high = high, min(2 * high, MOST)
        if low == MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
