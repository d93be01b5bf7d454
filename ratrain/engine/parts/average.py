"""An exponential moving average of the weights, evaluated in their place (Polyak & Juditsky 1992).

It tells where a run is without the noise of its last steps; training does not see it.
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
    """Of the fp32 weights; with a `decay` of 0 there is none, and nothing is kept.

    Step t weighs 1 - min(decay, (1 + t) / (10 + t)), so that the first steps do not weigh on the average for ever.
    """

    marks = (_MARK,)

    def __init__(self, precision: Precision, decay: float, settle: Callable[[], None] = lambda: None):
        """`settle` makes weights that were put in place what weights have to be: zero where they are pruned."""
        self._precision, self._decay, self._settle = precision, decay, settle
        self._weights = [weight.data for weight in precision.masters.values()] if decay else []
        self._kept = [weight.clone() for weight in self._weights]

    def after_step(self, step: int) -> None:
        """Takes in the weights that step `step`, counted from 1, has left."""
        if self._kept:
            torch._foreach_lerp_(self._kept, self._weights, 1 - min(self._decay, (1 + step) / (10 + step)))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile."""
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
        """From a checkpoint; where it has none, the average begins with the weights as they are."""
        for (name, kept), weight in zip(self.tensors().items(), self._weights, strict=True):
            kept.copy_(tensors.get(name, weight))
