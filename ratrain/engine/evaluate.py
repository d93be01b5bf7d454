"""Validation loss on fixed windows, the same for every variant, in the training precision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ratrain.engine.step import Precision
from ratrain.machine.distributed import World
from ratrain.model.gpt2 import GPT2


class Evaluator:
    """Computes the mean loss over `windows` [n, T + 1], in batches of one shape, so that one graph suffices."""

    def __init__(
        self,
        model: GPT2,
        windows: Tensor,
        *,
        precision: Precision,
        batch: int,
        world: World = World(),  # noqa: B008 - frozen
    ):
        self.model, self.precision, self.world = model, precision, world
        self.batch = min(batch, len(windows))
        short = -len(windows) % self.batch
        self.windows = torch.cat([windows, windows[:1].expand(short, -1)])
        self.counted = len(windows)

    @property
    def real_windows(self) -> Tensor:
        """The windows without the rows that pad the last batch."""
        return self.windows[: self.counted]

    @property
    def targets(self) -> np.ndarray:
        """The tokens that are predicted, int64 [n, T]."""
        return self.real_windows[:, 1:].cpu().numpy()

    @property
    def tokens(self) -> int:
        return self.real_windows[:, 1:].numel()

    def __call__(self) -> float:
        """Returns the mean loss in nats per token; leaves the model in training mode."""
        return float(self.losses().mean())

    def losses(self) -> Tensor:
        """Returns the loss of every target, float64 [n, T] on the CPU; the processes share the batches."""
        world = self.world
        own = self._taken(range(world.rank, self._batches, world.size), passes=-(-self._batches // world.size))
        return world.sum(own)[: self.counted].cpu()

    def rehearse(self) -> None:
        """Evaluates the first batch on every process, which compiles the evaluation graphs."""
        self._taken(range(1), passes=1)

    @property
    def _batches(self) -> int:
        return len(self.windows) // self.batch

    @torch.no_grad()
    def _taken(self, batches: range, *, passes: int) -> Tensor:
        """Returns the losses of these batches and zeros for all others: float64 [N, T] on the device.

        If the model is divided, every process takes part in all `passes`, those with fewer batches too.
        """
        self.model.eval()
        taken = torch.zeros(self.windows[:, 1:].shape, dtype=torch.float64, device=self.model.wte.weight.device)
        for index in batches:
            part = slice(index * self.batch, (index + 1) * self.batch)
            taken[part] = self._pass(self.windows[part].to(taken.device))
        if sharding := self.world.sharding:
            for _ in range(len(batches), passes):
                self._pass(self.windows[: self.batch].to(taken.device))
            sharding.divide()  # the weights that were gathered may change before the next pass
        self.model.train()
        return taken

    def _pass(self, rows: Tensor) -> Tensor:
        """Returns the losses [B, T] of windows [B, T + 1]."""
        with self.precision.forward():
            return self.model(rows[:, :-1], rows[:, 1:].contiguous(), "none")
