"""The progress of a run: steps, time, losses, skipped steps. All of it but `saved_at` is in each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ratrain.config.resolve import steps_total
from ratrain.config.schema import Manifest
from ratrain.engine.parts.part import Position


@dataclass
class Progress:
    """Counters of one run with a budget of `total_steps` steps, or of `budget_seconds` if that is None."""

    total_steps: int | None
    budget_seconds: float = 0.0
    steps: int = 0  # done
    spent_seconds: float = 0.0  # of training alone, over all sessions of the run
    last_loss: float | None = None  # of the last evaluation
    evaluated_at: int = -1  # the step of that evaluation
    saved_at: int = -1  # step of the newest checkpoint
    skips_in_a_row: int = 0  # steps without a finite gradient, up to now
    skipped: int = 0  # such steps in all
    _timed_steps: int = 0  # steps that `spent_seconds` covers

    @classmethod
    def of(cls, manifest: Manifest) -> Progress:
        return cls(steps_total(manifest), manifest.train.budget.amount)

    def add_time(self, seconds: float) -> None:
        """Counts the time of the steps since the last call."""
        self.spent_seconds += seconds
        self._timed_steps = self.steps

    def at(self, step: int) -> Position:
        """Returns the position after `step` steps.

        A budget in seconds is measured once per window; in between it advances by the mean time of the steps so far.
        """
        if self.total_steps is not None:
            return Position(step, step / self.total_steps)
        per_step = self.spent_seconds / self._timed_steps if self._timed_steps else 0.0
        seconds = self.spent_seconds + (step - self._timed_steps) * per_step
        return Position(step, min(1.0, seconds / self.budget_seconds))

    @property
    def now(self) -> Position:
        return self.at(self.steps)

    @property
    def finished(self) -> bool:
        if self.total_steps is not None:
            return self.steps >= self.total_steps
        return self.spent_seconds >= self.budget_seconds

    def restore(self, step: int, *, spent_seconds: float, last_loss: float | None, evaluated_at: int) -> None:
        """Sets the counters to the values in a checkpoint of step `step`."""
        self.steps = self._timed_steps = step
        self.spent_seconds, self.last_loss, self.evaluated_at = spent_seconds, last_loss, evaluated_at
