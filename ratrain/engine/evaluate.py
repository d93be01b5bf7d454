"""Validation loss on fixed windows, the same for every variant, in the training precision."""

from __future__ import annotations

import torch
from torch import Tensor

from ratrain.engine.step import Precision
from ratrain.model.gpt2 import GPT2


class Evaluator:
    """Mean loss over `windows` [n, T + 1], in batches of one shape so that one graph serves."""

    def __init__(self, model: GPT2, windows: Tensor, *, precision: Precision, batch: int):
        self.model, self.precision = model, precision
        self.batch = min(batch, len(windows))
        short = -len(windows) % self.batch
        self.windows = torch.cat([windows, windows[:1].expand(short, -1)])
        self.counted = len(windows)

    @property
    def real_windows(self) -> Tensor:
        """The windows without the rows that only fill the last batch."""
        return self.windows[: self.counted]

    @property
    def tokens(self) -> int:
        return self.real_windows[:, 1:].numel()

    def __call__(self) -> float:
        """Nats per token; leaves the model in training mode."""
        return self.run(self.windows)

    @torch.no_grad()
    def run(self, windows: Tensor) -> float:
        self.model.eval()
        device = self.model.wte.weight.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for index, rows in enumerate(windows.split(self.batch)):
            rows = rows.to(device)
            targets = rows[:, 1:].clone()
            counted = min(self.batch, self.counted - index * self.batch)
            targets[counted:] = -1  # rows that only fill the last batch
            with self.precision.forward():
                total += self.model(rows[:, :-1], targets).double() * counted
        self.model.train()
        return float(total / min(self.counted, len(windows)))
