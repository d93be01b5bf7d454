"""The learning rate as a function of the fraction of the budget that is spent."""

from __future__ import annotations

import math

from ratrain.config.schema import ScheduleSection


class Schedule:
    """Warm-up to `lr`, then the decay that `kind` names, down to `final` x lr at the end of the budget.

    cosine: half a cosine; linear: straight down; constant: no decay; wsd: constant, then over the last `decay` of the
    budget down as 1 - sqrt(x) (Hägele et al., arXiv:2405.18392, equation 2).
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
        """Learning rate when `spent` of the budget, in [0, 1], is used."""
        peak = self.section.lr
        if spent < self.warmup:
            return peak * max(spent / self.warmup, 0.01)  # a first step at lr 0 would be wasted
        return peak * self._decayed((spent - self.warmup) / (1 - self.warmup), spent)

    def _decayed(self, after: float, spent: float) -> float:
        """Factor on the peak; `after` runs from 0 at the end of the warm-up to 1 at the end of the budget."""
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
