"""What an optimizer counts beside its steps, such as spikes: read with each window, told where it has grown."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from ratrain.events import OptimizerTold


class Tallies:
    """An optimizer may keep 0-d tensors in `own`, and name in `tallies` those that only ever grow."""

    def __init__(self, optimizer: Optimizer):
        self.own: dict[str, Tensor] = getattr(optimizer, "own", {})
        self._names: tuple[str, ...] = tuple(getattr(optimizer, "tallies", ()))
        self.begin()

    def begin(self) -> None:
        """What is counted by now has been told."""
        self._known = self._read()

    def told(self, step: int) -> Iterator[OptimizerTold]:
        """What has grown by the end of a window."""
        if not self._names:
            return
        totals, before = self._read(), self._known
        self._known = totals
        counts = {name: total - before[name] for name, total in totals.items() if total > before[name]}
        if counts:
            yield OptimizerTold(step, counts, {name: totals[name] for name in counts})

    def _read(self) -> dict[str, int]:
        if not self._names:
            return {}
        values = torch.stack([self.own[name].double() for name in self._names]).tolist()
        return {name: round(value) for name, value in zip(self._names, values, strict=True)}
