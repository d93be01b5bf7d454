"""An exponential moving average of the weights, evaluated in their place (Polyak & Juditsky 1992).

It removes the noise of the last steps from the validation loss; training does not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ratrain.engine.parts.part import Part
from ratrain.engine.step import Precision

_MARK = "ema|"


class Average(Part):
    """Averages the fp32 weights; with a `decay` of 0 it does nothing and holds no tensors.

    Step t has weight 1 - min(decay, (1 + t) / (10 + t)), so that the influence of the first steps fades quickly.
    """

    marks = (_MARK,)

    def __init__(self, precision: Precision, decay: float, settle: Callable[[], None] = lambda: None):
        """`settle` is called after the averaged weights are copied in; it zeroes pruned weights."""
        self._precision, self._decay, self._settle = precision, decay, settle
        self._weights = [weight.data for weight in precision.masters.values()] if decay else []
        self._kept = [weight.clone() for weight in self._weights]

    def after_step(self, step: int) -> None:
        """Adds the weights after step `step`, counted from 1, to the average."""
        if self._kept:
            torch._foreach_lerp_(self._kept, self._weights, 1 - min(self._decay, (1 + step) / (10 + step)))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Gives the model the averaged weights for the duration of the context."""
        if not self._kept:
            yield
            return
        held = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._kept)
        self._settle()
        self._precision.publish()
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, held)
            self._precision.publish()

    def tensors(self) -> dict[str, Tensor]:
        names = [f"{_MARK}{name}" for name in self._precision.masters]
        return dict(zip(names, self._kept, strict=True)) if self._kept else {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores the average from a checkpoint; without one it starts from the current weights."""
        for (name, kept), weight in zip(self.tensors().items(), self._weights, strict=True):
            kept.copy_(tensors.get(name, weight))
