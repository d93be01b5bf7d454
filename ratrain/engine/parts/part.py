"""The protocol of the parts of a run: activation, fits, weight pruning, averages, probes, counts of the optimizer.

The engine owns the loop, the data and the optimizer step. Every optional feature is a `Part`: the engine calls every
hook of every part, in the order of `all_parts.py`, and publishes the returned events. To add a part, write a class in a
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
    """A position in the run: `step` steps are done, `spent` is the fraction of the budget they used, in [0, 1]."""

    step: int
    spent: float


@dataclass(frozen=True)
class Readings:
    """The values of a window of steps, read from the device at its end: one entry per step, losses averaged over
    processes."""

    losses: Sequence[float]  # nats per token
    norms: Sequence[float]  # of the gradient before clipping; not finite: the step was skipped
    seconds: float  # wall time of all its steps
    values: Mapping[Any, list[float]] = field(default_factory=dict)  # this part's `to_read` tensors, flattened


class Part:
    """An optional feature of a run. Every hook does nothing by default; a part overrides the ones it needs."""

    key: ClassVar[str] = ""  # name of `state` in a checkpoint; "": the part has no such state
    marks: ClassVar[tuple[str, ...]] = ()  # prefixes of the names of `tensors` in a checkpoint

    # -- the loop ------------------------------------------------------------------------------------------------

    def begin(self) -> Iterable[Event]:
        """Called once, before the first step of a run; not when a run resumes."""
        return ()

    def move_to(self, now: Position) -> Iterable[Event]:
        """Sets all position-dependent values. Called before every step; positions may repeat."""
        return ()

    def due(self, now: Position) -> bool:
        """Returns whether the window must end here because `between_windows` has work."""
        return False

    def between_windows(self, now: Position) -> Iterable[Event]:
        """Does work outside compiled steps, before the next window begins."""
        return ()

    def stops(self, step: int) -> Iterable[int]:
        """Returns steps after `step` at which a window must end, so that results do not depend on window lengths."""
        return ()

    def before_step(self, after: Position) -> None:
        """Called before a step; `after` is the position after that step."""

    def after_step(self, step: int) -> None:
        """Called after step number `step`, counted from 1. Must not read the device."""

    def to_read(self) -> Mapping[Any, Tensor]:
        """Returns tensors to read after the last step of a window; all parts share one transfer from the device."""
        return {}

    def window_fields(self) -> Mapping[str, float]:
        """Returns the fields of `events.Window` that this part fills in."""
        return {}

    def after_window(self, now: Position, window: Readings) -> Iterable[Event]:
        """Called on every process after the window's event is published."""
        return ()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluating(self) -> AbstractContextManager:
        """Returns a context for an evaluation; the contexts of the parts exit in reverse order."""
        return nullcontext()

    def after_evaluation(self, now: Position, loss: float) -> Iterable[Event]:
        """Called with every validation loss, in nats per token, after its event is published."""
        return ()

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, now: Position) -> Iterable[Event]:
        """Called once on every process, after the last step is evaluated and saved."""
        return ()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Returns JSON values that a resumed run needs."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Returns tensors that a resumed run needs; each name begins with one of `marks`."""
        return {}

    def check_parent(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Raises ManifestError if a run cannot branch from another run's checkpoint because of this part."""

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores the part from its `state` and `tensors`; `tensors` holds those of all parts. Either may be empty."""
