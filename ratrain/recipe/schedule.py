"""The learning rate as a function of the spent fraction of the budget."""

from __future__ import annotations

import math

from ratrain.config.schema import ScheduleSection


class Schedule:
    """Linear warm-up to `lr`, then decay of the given `kind` to `final` x lr at the end of the budget.

    cosine: half a cosine; linear: a straight line; constant: no decay; wsd: constant, then a decay as 1 - sqrt(x) over
    the last `decay` of the budget (Hägele et al., arXiv:2405.18392, equation 2).
    """

    def __init__(self, section: ScheduleSection, *, total_steps: int | None):
        self.section = section
        span = section.warmup
        if span.fraction is not None:
            self.warmup = span.fraction
        else:
            assert total_steps is not None and span.steps is not None, "a budget in seconds has a fractional warm-up"
            self.warmup = span.steps / total_steps

    def lr(self, spent: float) -> float:
        """Returns the learning rate at the spent fraction `spent` of the budget, in [0, 1]."""
        peak = self.section.lr
        if spent < self.warmup:
            return peak * max(spent / self.warmup, 0.01)  # a first step at lr 0 would be wasted
        return peak * self._decayed((spent - self.warmup) / (1 - self.warmup), spent)

    def _decayed(self, after: float, spent: float) -> float:
        """Returns the factor on the peak; `after` is 0 at the end of the warm-up and 1 at the end of the budget."""
        final, kind = self.section.final, self.section.kind
        after = min(after, 1.0)
        if kind == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * after))
        if kind == "linear":
            return final + (1 - final) * (1 - after)
        if kind == "wsd":
            x = min(max(0.0, 1 - (1 - spent) / self.section.decay), 1.0)
            return final + (1 - final) * (1 - math.sqrt(x))
        return 1.0
