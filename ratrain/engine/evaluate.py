"""Validation loss on fixed windows, the same for every variant, in the training precision."""

from __future__ import annotations

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
    def tokens(self) -> int:
        return self.real_windows[:, 1:].numel()

    def __call__(self) -> float:
        """Returns the mean loss in nats per token; leaves the model in training mode."""
        return float(self.losses().mean())

    def losses(self) -> Tensor:
        """Returns the loss of every target, float64 [n, T] on the CPU; the processes share the batches."""
        own = self._taken(range(self.world.rank, self._batches, self.world.size))
        return self.world.sum(own)[: self.counted].cpu()

    def rehearse(self) -> None:
        """Evaluates the first batch on every process, which compiles the evaluation graphs."""
        self._taken(range(1))

    @property
    def _batches(self) -> int:
        return len(self.windows) // self.batch

    @torch.no_grad()
    def _taken(self, batches: range) -> Tensor:
        """Returns the losses of these batches and zeros for all others: float64 [N, T] on the device."""
        self.model.eval()
        device = self.model.wte.weight.device
        taken = torch.zeros(self.windows[:, 1:].shape, dtype=torch.float64, device=device)
        for index in batches:
            part = slice(index * self.batch, (index + 1) * self.batch)
            rows = self.windows[part].to(device)
            with self.precision.forward():
                taken[part] = self.model(rows[:, :-1], rows[:, 1:].contiguous(), "none")
        self.model.train()
        return taken
