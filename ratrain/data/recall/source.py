"""A recall task as the data of a run: batches and validation rows, drawn instead of read."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch

from ratrain.config.recall import key_count
from ratrain.config.schema import DataSection
from ratrain.data.recall import TASKS
from ratrain.data.recall.drawing import IGNORED, Draw, Shape
from ratrain.data.recall.symbols import Symbols
from ratrain.data.sampling import Clusters, Windows, local_rows
from ratrain.errors import DataError

_VERSION = 1  # increment when the same seed draws other rows
_TRAIN, _VALIDATION = 1, 2  # streams of Philox; a batch of text is drawn from stream 0
_VALIDATION_SEED = 0x52454341_4C4C0001  # the same rows for every seed of a run


class Recall:
    """The rows of the task that `section.source` names."""

    train_tokens = val_tokens = 0  # nothing is stored: rows are drawn
    is_text = False

    def __init__(self, section: DataSection, *, block_size: int, vocab_size: int):
        self.section, self.tokenizer = section, Symbols()
        self._task = TASKS[section.source]
        self.shape = Shape(block_size, vocab_size, section.pairs, section.distance, section.noise)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the task and of the sizes of its rows."""
        told = [_VERSION, self.section.source, self.shape.block_size, self.shape.vocab_size, self.section.pairs]
        told += [self.section.distance, self.section.noise]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def sampler(self, *, seed: int, batch: int, block_size: int, rank: int = 0, world: int = 1) -> RecallSampler:
        return RecallSampler(self, seed=seed, batch=batch, block_size=block_size, rank=rank, world=world)

    def validation(self, *, block_size: int, count: int) -> Windows:
        """Draws `count` rows, the same for every run of this task and size."""
        rows = self.draw(count, seed=_VALIDATION_SEED, step=0, stream=_VALIDATION, block_size=block_size)
        inputs, targets = map(torch.from_numpy, rows)
        return Windows(inputs, targets, is_text=False)

    def clusters(self, windows: Windows) -> Clusters:
        """Takes each row as a cluster: its answers depend on one another, those of other rows do not."""
        of = torch.arange(len(windows.targets))[:, None].expand(windows.targets.shape)
        return Clusters("row", of.masked_fill(windows.targets == IGNORED, IGNORED))

    def baselines(self, windows: Windows) -> dict[str, float]:
        """Returns nats per answer of a uniform guess over all symbols, and over those that can be an answer."""
        known = key_count(self.shape.vocab_size)
        possible = known if self.section.source in ("copy", "induction") else self.shape.vocab_size - 2 - known
        return {"uniform": math.log(self.shape.vocab_size), "guess": math.log(possible)}

    def bits_per_byte(self, loss: float, targets: np.ndarray) -> None:
        """Symbols are no text: there is no such figure."""

    def told(self, tokens: list[int], targets: list[int], answers: list[int]) -> str:
        """Returns a row, and the model's answers beside the right ones."""
        lines = [
            f"after token {at}, {tokens[at]}: {answers[at]}" + ("" if answers[at] == right else f", right is {right}")
            for at, right in enumerate(targets)
            if right != IGNORED
        ]
        return "\n".join([f"{self.section.source}: {self.tokenizer.decode(tokens)}", *lines])

    def draw(self, count: int, *, seed: int, step: int, stream: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws tokens and targets, int64 [count, T] each."""
        if block_size != self.shape.block_size:
            raise DataError(f"{self.section.source}: rows have {self.shape.block_size} tokens, asked for {block_size}")
        return self._task(Draw(seed, step=step, stream=stream, shape=self.shape), count, self.shape)


class RecallSampler:
    """Draws the rows of rank r of N of every step; a batch is a function of (seed, step) alone."""

    def __init__(self, task: Recall, *, seed: int, batch: int, block_size: int, rank: int = 0, world: int = 1):
        self.task, self.seed, self.batch_size, self.block_size = task, seed, batch, block_size
        self.rows = local_rows(batch, rank=rank, world=world)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and targets of `step`, int64 [B / N, T] each; -1 is a target that is not predicted."""
        tokens, targets = self._drawn(step)
        return torch.from_numpy(tokens[self.rows]), torch.from_numpy(targets[self.rows])

    def order(self, step: int) -> np.ndarray:
        """Returns the rows of the whole batch of `step`, for a digest of the order of the data."""
        return np.stack(self._drawn(step))

    def _drawn(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        options = {"step": step, "stream": _TRAIN, "block_size": self.block_size}
        return self.task.draw(self.batch_size, seed=self.seed, **options)
