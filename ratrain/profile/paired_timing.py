"""Paired timing of steps on a machine with drifting speed: every round runs all steps, and ratios are within rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its 95 % interval (binomial order statistics)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, costs: list[float], base: list[float]) -> Ratio:
        ratios = sorted(a / b for a, b in zip(costs, base, strict=True))
        reach = round(0.98 * math.sqrt(len(ratios)))  # 1.96 standard deviations of a binomial with p = 1/2
        middle = len(ratios) / 2
        low, high = ratios[max(0, int(middle - reach))], ratios[min(len(ratios) - 1, int(middle + reach))]
        return cls(statistics.median(ratios), low, high)

    def __str__(self) -> str:
        return f"{self.median:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def measure(
    steps: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Times each step by `clock`; returns seconds by name and round, the mean of two executions per round."""

    def timed(step: Callable[[], object]) -> float:
        start = clock()
        step()
        return clock() - start

    return interleave({name: partial(timed, step) for name, step in steps.items()}, rounds)


def interleave(
    arms: Mapping[str, Callable[[], float]], rounds: int, on_round: Callable[[int], object] | None = None
) -> dict[str, list[float]]:
    """Runs all arms in one order, then in reverse, and averages the seconds that each returns, by name and round.

    Every round begins with another arm, since the last arm of an order runs twice in a row and finds its data in the
    cache. `on_round` receives the number of finished rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for done in range(1, rounds + 1):
        once: dict[str, float] = dict.fromkeys(arms, 0.0)
        for name in (*order, *reversed(order)):
            once[name] += arms[name]() / 2
        order.append(order.pop(0))
        for name, cost in once.items():
            seconds[name].append(cost)
        if on_round:
            on_round(done)
    return seconds


def rows_of(seconds: dict[str, list[float]], *, base: str) -> dict[str, dict[str, float]]:
    """Summarizes a measurement by name: median milliseconds, ratio to `base` with its interval, rounds."""
    return {
        name: {
            "ms": round(1e3 * statistics.median(costs), 3),
            **{key: round(value, 4) for key, value in vars(Ratio.of(costs, seconds[base])).items()},
            "rounds": len(costs),
        }
        for name, costs in seconds.items()
    }
