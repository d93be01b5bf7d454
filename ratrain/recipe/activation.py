"""When a mechanism is switched on: the schedule of s, from 0 (the base model) to 1.

The variance rule asks whether training has settled: it opens when the losses of a window vary little about their
trend. (The rule that it replaces looked at their raw variance, which a falling loss never lets go below a bound.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ratrain.config.schema import ActivationSection, Span


class Activation:
    """The s of one mechanism, step by step.

    `losses` and `opened` are all that it remembers: put both back and it goes on as if nothing had happened.
    """

    def __init__(self, section: ActivationSection, *, total_steps: int | None):
        self.section, self.total_steps = section, total_steps
        self.losses: list[float] = []  # the newest, variance only
        self.opened: tuple[int, float] | None = None  # step and spent fraction of the budget at which variance opened

    def s(self, step: int, spent: float) -> float:
        """s for the step after `step` are done, when `spent` of the budget is used."""
        section = self.section
        if section.kind == "at_once":
            return 1.0
        if section.kind == "variance":
            return 0.0 if self.opened is None else self._ramp(step - self.opened[0], spent - self.opened[1])
        if not self._reached(section.after, step, spent):
            return 0.0
        return 1.0 if section.kind == "after" else self._ramp(*self._since(section.after, step, spent))

    def next_look(self, step: int) -> int | None:
        """The step after `step` at which the losses are wanted; None where they never are again."""
        if self.section.kind != "variance" or self.opened is not None:
            return None
        return (step // self.section.every + 1) * self.section.every

    def look(self, losses: Sequence[float], step: int, spent: float) -> None:
        """Hears the losses of the steps up to `step`, and decides where a look is due."""
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
        """Of the remembered losses, n in the denominator: about their mean (raw), or about their own straight line."""
        losses = np.array(self.losses)
        if self.section.rule == "raw":
            return float(losses.var())
        at = np.arange(len(losses)) - (len(losses) - 1) / 2
        slope = (at * losses).sum() / (at * at).sum()
        return float((losses - losses.mean() - slope * at).var())

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"losses": self.losses, "opened": self.opened}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = list(state["losses"])
        self.opened = None if state["opened"] is None else (state["opened"][0], state["opened"][1])

    def _reached(self, span: Span, step: int, spent: float) -> bool:
        return step >= span.steps if span.steps is not None else spent >= (span.fraction or 0.0)

    def _since(self, span: Span, step: int, spent: float) -> tuple[float, float]:
        """Steps and fraction of the budget since `span` was reached; one of them is estimated from the other."""
        if span.steps is not None:
            done = step - span.steps
            return done, done / self.total_steps if self.total_steps else spent * done / max(step, 1)
        gone = spent - (span.fraction or 0.0)
        return gone * self.total_steps if self.total_steps else step * gone / max(spent, 1e-12), gone

    def _ramp(self, steps: float, fraction: float) -> float:
        over = self.section.over
        part, whole = (steps, over.steps) if over.steps is not None else (fraction, over.fraction or 0.0)
        return 1.0 if part >= whole else part / whole
