"""Validation loss on fixed rows, the same for every variant, in the training precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ratrain.data.sampling import Windows
from ratrain.engine.step import Precision
from ratrain.machine.distributed import World
from ratrain.model.gpt2 import GPT2


class Evaluator:
    """Computes the mean loss over `windows` of n rows, in batches of one shape, so that one graph suffices."""

    def __init__(
        self,
        model: GPT2,
        windows: Windows,
        *,
        precision: Precision,
        batch: int,
        world: World = World(),  # noqa: B008 - frozen
    ):
        self.model, self.precision, self.world = model, precision, world
        self.batch = min(batch, len(windows))
        self.windows = windows
        short = -len(windows) % self.batch
        self._rows = [torch.cat([t, t[:1].expand(short, -1)]) for t in (windows.inputs, windows.targets)]

    @property
    def targets(self) -> np.ndarray:
        """The tokens that are predicted, int64 [n]."""
        targets = self.windows.targets
        return targets[targets >= 0].cpu().numpy()

    @property
    def tokens(self) -> int:
        return int((self.windows.targets >= 0).sum())

    def __call__(self) -> float:
        """Returns the mean loss in nats per predicted token; leaves the model in training mode."""
        return self.mean(self.losses())

    def mean(self, values: Tensor) -> float:
        """Averages values [n, T], 0 at targets that are not predicted, over those that are."""
        return float(values.sum() / self.tokens)

    def losses(self) -> Tensor:
        """Returns the loss of every target, float64 [n, T] on the CPU; the processes share the batches."""
        return self._shared(self._losses)

    def hits(self) -> Tensor:
        """Returns 1 for every target that has the largest logit, else 0: float64 [n, T] on the CPU."""
        with self.world.gathered():  # the logits do not pass through the forward of a divided model
            return self._shared(self._hits)

    def rehearse(self) -> None:
        """Evaluates the first batch on every process, which compiles the evaluation graphs."""
        self._taken(self._losses, range(1), 1)

    @property
    def _batches(self) -> int:
        return len(self._rows[0]) // self.batch

    def _shared(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        world = self.world
        own = self._taken(measure, range(world.rank, self._batches, world.size), -(-self._batches // world.size))
        return world.sum(own)[: len(self.windows)].cpu()

    @torch.no_grad()
    def _taken(self, measure: Callable[[Tensor, Tensor], Tensor], batches: range, passes: int) -> Tensor:
        """Returns `measure` of these batches and zeros for all others: float64 [N, T] on the device.

        If the model is divided, every process takes part in all `passes`, those with fewer batches too.
        """
        self.model.eval()
        device = self.model.wte.weight.device
        taken = torch.zeros(self._rows[0].shape, dtype=torch.float64, device=device)
        for index in batches:
            part = slice(index * self.batch, (index + 1) * self.batch)
            taken[part] = measure(*(rows[part].to(device) for rows in self._rows))
        if sharding := self.world.sharding:
            for _ in range(len(batches), passes):
                measure(*(rows[: self.batch].to(device) for rows in self._rows))
            sharding.divide()  # the weights that were gathered may change before the next pass
        self.model.train()
        return taken

    def _losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the losses of inputs and targets [B, T] -> [B, T]."""
        with self.precision.forward():
            return self.model(inputs, targets, "none")

    def _hits(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self.precision.forward():
            return self.model.logits(inputs).argmax(-1) == targets
