"""Activation schedule of a mechanism: s from 0 (the base model) to 1.

The variance rule tests whether training has settled: it opens when the variance of the losses of a window about their
linear trend falls below a threshold. (The raw variance, the rule that it replaces, stays high while the loss falls.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ratrain.config.schema import ActivationSection, Span


class Activation:
    """Computes s of one mechanism step by step.

    `losses` and `opened` are its entire state: restoring both resumes the schedule exactly.
    """

    def __init__(self, section: ActivationSection, *, total_steps: int | None):
        self.section, self.total_steps = section, total_steps
        self.losses: list[float] = []  # the newest, variance only
        self.opened: tuple[int, float] | None = None  # step and spent fraction of the budget at which variance opened

    def s(self, step: int, spent: float) -> float:
        """Returns s for the next step, after `step` completed steps and a fraction `spent` of the budget."""
        section = self.section
        if section.kind == "at_once":
            return 1.0
        if section.kind == "variance":
            return 0.0 if self.opened is None else self._ramp(step - self.opened[0], spent - self.opened[1])
        if not self._reached(section.after, step, spent):
            return 0.0
        return 1.0 if section.kind == "after" else self._ramp(*self._since(section.after, step, spent))

    def next_look(self, step: int) -> int | None:
        """Returns the next step after `step` at which the losses are needed; None if they are no longer needed."""
        if self.section.kind != "variance" or self.opened is not None:
            return None
        return (step // self.section.every + 1) * self.section.every

    def look(self, losses: Sequence[float], step: int, spent: float) -> None:
        """Receives the losses of the steps up to `step`; decides every `every` steps whether to open."""
        section = self.section
        if section.kind != "variance" or self.opened is not None:
            return
        self.losses = [*self.losses, *losses][-section.window :]
        if step % section.every:
            return
        settled = len(self.losses) == section.window and self.variance() < section.threshold
        late = self._reached(section.deadline, step, spent)
        if late or (settled and self._reached(section.after, step, spent)):
            self.opened = step, spent

    def variance(self) -> float:
        """Returns the variance of the stored losses, divided by n: about their mean (raw) or their fitted line."""
        losses = np.array(self.losses)
        if self.section.rule == "raw":
            return float(losses.var())
        at = np.arange(len(losses)) - (len(losses) - 1) / 2
        slope = (at * losses).sum() / (at * at).sum()
        return float((losses - losses.mean() - slope * at).var())

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values for a checkpoint."""
        return {"losses": self.losses, "opened": self.opened}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = list(state["losses"])
        self.opened = None if state["opened"] is None else (state["opened"][0], state["opened"][1])

    def _reached(self, span: Span, step: int, spent: float) -> bool:
        return step >= span.steps if span.steps is not None else spent >= (span.fraction or 0.0)

    def _since(self, span: Span, step: int, spent: float) -> tuple[float, float]:
        """Returns steps and fraction of the budget since `span` was reached; one is estimated from the other."""
        if span.steps is not None:
            done = step - span.steps
            return done, done / self.total_steps if self.total_steps else spent * done / max(step, 1)
        gone = spent - (span.fraction or 0.0)
        return gone * self.total_steps if self.total_steps else step * gone / max(spent, 1e-12), gone

    def _ramp(self, steps: float, fraction: float) -> float:
        over = self.section.over
        part, whole = (steps, over.steps) if over.steps is not None else (fraction, over.fraction or 0.0)
        return 1.0 if part >= whole else part / whole
