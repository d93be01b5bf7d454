"""The protocol of the parts of a run: activation, fits, weight pruning, averages, probes, counts of the optimizer.

The engine owns the loop, the data and the optimizer step. Everything optional is a `Part`: the engine calls every
hook of every part, in the order of `all_parts.py`, and publishes the events that come back. To add one: a class in a
file of its own here, a line in `all_parts.py`, and a key in the manifest's schema if users are to control it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ratrain.events import Event


@dataclass(frozen=True)
class Position:
    """A point of the run: `step` steps are done, `spent` is the fraction of the budget that they used, in [0, 1]."""

    step: int
    spent: float


@dataclass(frozen=True)
class Readings:
    """A window of steps as read from the device at its end: one entry per step, mean over processes for losses."""

    losses: Sequence[float]  # nats per token
    norms: Sequence[float]  # of the gradient before clipping; not finite: the step was skipped
    seconds: float  # wall time of all its steps
    values: Mapping[Any, list[float]] = field(default_factory=dict)  # what this part gave in `to_read`, flattened


class Part:
    """One optional piece of a run. Every hook does nothing by default; a part overrides those that it needs."""

    key: ClassVar[str] = ""  # section of `state` in a checkpoint; "": the part has no such state
    marks: ClassVar[tuple[str, ...]] = ()  # prefixes of the names of `tensors` in a checkpoint

    # -- the loop ------------------------------------------------------------------------------------------------

    def begin(self) -> Iterable[Event]:
        """Called once, before the first step of a run; not when a run resumes."""
        return ()

    def move_to(self, now: Position) -> Iterable[Event]:
        """Sets everything that depends on the position. Called before every step, and may repeat a position."""
        return ()

    def due(self, now: Position) -> bool:
        """Whether the window must end here, because `between_windows` has work."""
        return False

    def between_windows(self, now: Position) -> Iterable[Event]:
        """Work outside compiled steps, before the next window begins."""
        return ()

    def stops(self, step: int) -> Iterable[int]:
        """Steps after `step` at which a window must end, so that results do not depend on the length of windows."""
        return ()

    def before_step(self, after: Position) -> None:
        """Called before a step; `after` is the position that the step leads to."""

    def after_step(self, step: int) -> None:
        """Called after step number `step`, counted from 1. Must not read the device."""

    def to_read(self) -> Mapping[Any, Tensor]:
        """Tensors to be read after the last step of a window, all in one transfer from the device."""
        return {}

    def window_fields(self) -> Mapping[str, float]:
        """Fields of `events.Window` that this part fills in."""
        return {}

    def after_window(self, now: Position, window: Readings) -> Iterable[Event]:
        """Called on every process, after the event of the window was published."""
        return ()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluating(self) -> AbstractContextManager:
        """Entered around an evaluation; parts are left in the reverse of their order."""
        return nullcontext()

    def after_evaluation(self, now: Position, loss: float) -> Iterable[Event]:
        """Called with every validation loss, in nats per token, after its event was published."""
        return ()

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, now: Position) -> Iterable[Event]:
        """Called once on every process, after the last step was evaluated and saved."""
        return ()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain values, as JSON holds them, that a resumed run needs."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, by names that begin with one of `marks`."""
        return {}

    def check_parent(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Raises ManifestError where a run cannot begin with this part of another run's checkpoint."""

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes what `state` and `tensors` gave; `tensors` holds those of all parts. Either may be empty."""
