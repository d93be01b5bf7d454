"""Counters of an optimizer beside its steps, such as spikes: read with each window, published when they grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.errors import Fault, ManifestError
from ratrain.events import OptimizerTold

OTHER_STATE = "the optimizer of the parent run keeps other state; expected the same [optim] section"
_MARK = "own|"


class Tallies(Part):
    """Reads an optimizer's 0-d tensors in `own`; `tallies` names the ones that only ever grow."""

    marks = (_MARK,)

    def __init__(self, optimizer: Optimizer):
        self.own: dict[str, Tensor] = getattr(optimizer, "own", {})
        self._names: tuple[str, ...] = tuple(getattr(optimizer, "tallies", ()))
        self._known = self._counted()

    def to_read(self) -> dict[str, Tensor]:
        return {name: self.own[name] for name in self._names}

    def after_window(self, now: Position, window: Readings) -> Iterator[OptimizerTold]:
        """Publishes the counts that grew since the last window."""
        totals = {name: round(window.values[name][0]) for name in self._names}
        counts = {name: total - self._known[name] for name, total in totals.items() if total > self._known[name]}
        self._known = totals
        if counts:
            yield OptimizerTold(now.step, counts, {name: totals[name] for name in counts})

    def tensors(self) -> dict[str, Tensor]:
        return {f"{_MARK}{name}": tensor for name, tensor in self.own.items()}

    def check_parent(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        kept = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(_MARK)}
        if kept != {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}:
            raise ManifestError([Fault("", "optim", OTHER_STATE)])

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self._known = self._counted()

    def _counted(self) -> dict[str, int]:
        """Returns the current counts; reads the device."""
        return {name: round(self.own[name].item()) for name in self._names}
