"""Detects divergence: too many steps without a finite gradient, or a loss or a weight that is not finite.

The checks use values that are read at windows, evaluations and checkpoints, so they add no sync to a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ratrain.engine.progress import Progress
from ratrain.errors import DivergedError
from ratrain.machine.distributed import World
from ratrain.storage.tensor_file import largest_of

_ADVICE = "lower schedule.lr, or lengthen the warm-up"


class Divergence:
    """Counts skipped steps in `progress`, in a row and in total, and raises DivergedError.

    More than `max_skips` skipped steps in a row end the run; at its end, so do more than half of all steps.
    """

    def __init__(self, max_skips: int, progress: Progress):
        self._max_skips, self._progress = max_skips, progress

    def count(self, norms: Sequence[float]) -> None:
        """Counts the non-finite gradient norms of the latest steps. Raises DivergedError after too many in a row."""
        now = self._progress
        for norm in norms:
            now.skips_in_a_row = 0 if math.isfinite(norm) else now.skips_in_a_row + 1
            now.skipped += not math.isfinite(norm)
            if now.skips_in_a_row > self._max_skips:
                raise DivergedError(
                    f"the gradient was not finite for {now.skips_in_a_row} steps in a row, up to "
                    f"step {now.steps} (train.max_skips = {self._max_skips}); {_ADVICE}"
                )

    def check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self.found(f"the validation loss at step {self._progress.steps} is {loss}")

    def check_weights(self, weights: Mapping[str, Tensor], world: World) -> None:
        """Raises DivergedError on all processes if a weight of one is not finite; reads the device once."""
        spoilt = torch.stack([~largest_of(weight).isfinite() for weight in weights.values()]).int()
        if bad := [name for name, count in zip(weights, world.sum(spoilt).tolist(), strict=True) if count]:
            more = f" and {len(bad) - 1} more weights" if len(bad) > 1 else ""
            raise self.found(f"{bad[0]}{more}: not finite at step {self._progress.steps}")

    def check_share(self) -> None:
        """Raises DivergedError if more than half of all steps were skipped; called at the end of the run."""
        skipped, steps = self._progress.skipped, self._progress.steps
        if 2 * skipped > steps:
            raise DivergedError(
                f"the gradient was not finite in {skipped} of {steps} steps, more than half of them; {_ADVICE}"
            )

    def found(self, what: str) -> DivergedError:
        """Returns the DivergedError for a divergence that the caller has detected."""
        return DivergedError(f"{what}{self._told()}; {_ADVICE}")

    def _told(self) -> str:
        skipped = self._progress.skipped
        return f", {skipped} steps had no finite gradient" if skipped else ""
