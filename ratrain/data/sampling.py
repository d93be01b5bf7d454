"""Batch sampling as a pure function of (seed, step, row): resuming needs no stored sampler state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ratrain.data.shards import TokenStream
from ratrain.errors import DataError, Fault, ManifestError

_DOCUMENTS = 10  # fewer are too few to estimate the variation between documents
_SCAN = 1 << 24  # tokens scanned at a time


def sample_rows(tokens_total: int, *, seed: int, step: int, batch: int, block_size: int) -> np.ndarray:
    """Draws the offset of each row's window of block_size + 1 tokens, uniform over all windows; int64 [batch].

    Row r of step s is the r-th 64-bit draw of Philox4x64, keyed by the seed, with its counter starting at s * 2^128.
    It depends on (seed, s, r) alone. A draw x becomes floor(x * windows / 2^64), which deviates from uniform by at
    most windows / 2^64.
    """
    windows = tokens_total - block_size
    assert windows > 0
    philox = np.random.Philox(key=seed % 2**128, counter=[0, 0, step, 0])
    draws = philox.random_raw(batch).astype(object)  # python integers: the product needs 128 bits
    return (draws * windows >> 64).astype(np.int64)


class Sampler:
    """Reads the rows of rank r of N in every step: r * B / N up to (r + 1) * B / N of the global batch of B rows."""

    def __init__(
        self,
        tokens: TokenStream,
        *,
        seed: int,
        batch: int,
        block_size: int,
        vocab_size: int = 1 << 16,
        rank: int = 0,
        world: int = 1,
    ):
        self.rows = local_rows(batch, rank=rank, world=world)
        require_window(tokens, block_size)
        self.tokens, self.seed, self.batch_size, self.block_size = tokens, seed, batch, block_size
        self.vocab_size = vocab_size

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and targets of `step`, int64 [B / N, T] each; the targets are the inputs shifted by one.

        Raises DataError if a token id is outside the vocabulary: the file changed after validation.
        """
        windows = windows_at(self.tokens, self.order(step)[self.rows], self.block_size)
        windows = checked(windows, self.vocab_size, f"{self.tokens.name}: step {step}")
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def order(self, step: int) -> np.ndarray:
        """Returns the offsets of the whole batch of `step`, int64 [B], also for a digest of the order of the data."""
        options = {"seed": self.seed, "batch": self.batch_size, "block_size": self.block_size}
        return sample_rows(len(self.tokens), step=step, **options)


def checked(windows: torch.Tensor, vocab_size: int, where: str) -> torch.Tensor:
    """Returns `windows`. Raises DataError for an id beyond the vocabulary: on a GPU a lookup would end the process."""
    if int(windows.max()) >= vocab_size:
        raise DataError(
            f"{where} reads id {int(windows.max())} of a vocabulary of {vocab_size}: "
            "a file was overwritten while in use"
        )
    return windows


def local_rows(batch: int, *, rank: int, world: int) -> slice:
    """Returns the rows of process `rank` in a batch. Raises ManifestError if they do not divide."""
    assert 0 <= rank < world
    if batch % world:
        raise ManifestError([Fault("", "train.batch", f"{batch} sequences do not divide among {world} processes")])
    return slice(rank * batch // world, (rank + 1) * batch // world)


@dataclass(frozen=True)
class Windows:
    """Validation rows: inputs and targets, int64 [n, T] each; a target of -1 is not predicted.

    `parts` are the numbers of rows from each corpus of a mixture, in order. In text each target is the next input.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    parts: tuple[int, ...] = ()
    is_text: bool = True

    @classmethod
    def of_text(cls, tokens: torch.Tensor) -> Windows:
        """Takes windows [n, T + 1] in which each token is predicted from those before it."""
        return cls(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    @property
    def tokens(self) -> torch.Tensor:
        """Every token once: text as windows [n, T + 1], other rows as inputs followed by targets [n, 2 T]."""
        return torch.cat([self.inputs, self.targets[:, -1:] if self.is_text else self.targets], dim=1)

    def __len__(self) -> int:
        return len(self.inputs)


def validation_windows(tokens: TokenStream, *, block_size: int, count: int) -> torch.Tensor:
    """Reads windows, int64 [n, block_size + 1], n <= count, evenly spaced from the first token to the last.

    No token is predicted twice: n is limited to the number of windows that fit, and the first token of a window may
    at most be the last target of the previous window. Raises DataError if not even one window fits.
    """
    return windows_at(tokens, _validation_offsets(tokens, block_size, count), block_size)


def _validation_offsets(tokens: TokenStream, block_size: int, count: int) -> np.ndarray:
    require_window(tokens, block_size)
    n = min(count, (len(tokens) - 1) // block_size)
    last = len(tokens) - block_size - 1
    return np.arange(n, dtype=np.int64) * last // max(n - 1, 1)


@dataclass(frozen=True)
class Clusters:
    """Clusters of the targets of the validation windows: the sampling units of the evaluation.

    `of` [n, T] is the cluster index of each target, from 0, or -1 of a target that is not predicted. `unit` is
    "document", or "passage" (one window) if the windows hold fewer than 10 documents: too few to generalise to other
    documents.
    """

    unit: str
    of: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """Targets per cluster, [K]."""
        return torch.bincount(self.of[self.of >= 0])

    def means(self, losses: torch.Tensor) -> torch.Tensor:
        """Averages losses [n, T] by cluster; float64 [K]."""
        counted = self.of >= 0
        return torch.bincount(self.of[counted], losses[counted].double()) / self.sizes


def validation_clusters(tokens: TokenStream, *, block_size: int, count: int, eot: int) -> Clusters:
    """Clusters the targets of the windows that `validation_windows` returns; a document begins with the token `eot`."""
    offsets = _validation_offsets(tokens, block_size, count)
    parts = range(0, len(tokens), _SCAN)
    begins = [np.flatnonzero(tokens.read(at, min(_SCAN, len(tokens) - at)) == eot) + at for at in parts]
    document = np.searchsorted(np.concatenate(begins), offsets[:, None] + np.arange(1, block_size + 1), side="right")
    found, of = np.unique(document, return_inverse=True)
    if len(found) >= _DOCUMENTS:
        return Clusters("document", torch.from_numpy(of.reshape(document.shape)))
    return Clusters("passage", torch.arange(len(offsets))[:, None].expand(-1, block_size))


def require_window(tokens: TokenStream, block_size: int) -> None:
    """Raises DataError if `tokens` cannot fill one window."""
    if len(tokens) < block_size + 1:
        raise DataError(
            f"{tokens.name}: {len(tokens)} tokens; model.block_size = {block_size} needs {block_size + 1} at least"
        )


def windows_at(tokens: TokenStream, offsets: Sequence[int] | np.ndarray, block_size: int) -> torch.Tensor:
    """Reads a window of block_size + 1 tokens from each offset on, int64 [n, block_size + 1]."""
    rows = [tokens.read(int(offset), block_size + 1) for offset in offsets]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
