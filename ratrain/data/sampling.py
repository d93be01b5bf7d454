"""Which tokens a step sees: a pure function of (seed, step, row), so that nothing need be stored to resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ratrain.data.shards import TokenStream
from ratrain.errors import DataError, Fault, ManifestError

_DOCUMENTS = 10  # fewer tell too little of how documents differ
_SCAN = 1 << 24  # tokens that are looked through at a time


def sample_rows(tokens_total: int, *, seed: int, step: int, batch: int, block_size: int) -> np.ndarray:
    """int64 [batch], the offset of each row's window of block_size + 1 tokens, uniform over all windows.

    Row r of step s is the r-th 64-bit draw of Philox4x64 keyed by the seed, its counter begun at s * 2^128: it
    depends on (seed, s, r) alone. A draw x becomes floor(x * windows / 2^64), off uniform by windows / 2^64 at most.
    """
    windows = tokens_total - block_size
    assert windows > 0
    philox = np.random.Philox(key=seed % 2**128, counter=[0, 0, step, 0])
    draws = philox.random_raw(batch).astype(object)  # python integers: the product needs 128 bits
    return (draws * windows >> 64).astype(np.int64)


class Sampler:
    """The rows of rank `rank` of `world` in every step: r * B / N up to (r + 1) * B / N of the global batch."""

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
        assert 0 <= rank < world
        if batch % world:
            raise ManifestError([Fault("", "train.batch", f"{batch} sequences do not divide among {world} processes")])
        require_window(tokens, block_size)
        self.tokens, self.seed, self.batch_size, self.block_size = tokens, seed, batch, block_size
        self.vocab_size = vocab_size
        self.rows = slice(rank * batch // world, (rank + 1) * batch // world)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of `step`, int64 [B / N, T] each; the targets are the inputs moved by one.

        Raises DataError where the files are no longer what was validated.
        """
        offsets = sample_rows(
            len(self.tokens), seed=self.seed, step=step, batch=self.batch_size, block_size=self.block_size
        )
        windows = _windows(self.tokens, offsets[self.rows], self.block_size)
        if int(windows.max()) >= self.vocab_size:  # on a GPU the lookup would end the process
            raise DataError(
                f"{self.tokens.name}: step {step} reads id {int(windows.max())} of a vocabulary of {self.vocab_size}: "
                "a file was overwritten while in use"
            )
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def validation_windows(tokens: TokenStream, *, block_size: int, count: int) -> torch.Tensor:
    """int64 [n, block_size + 1], n <= count, evenly spaced from the first token to the last.

    No token is predicted twice: as many windows are taken as fit, each at most sharing its first token with the
    last target of the one before. Raises DataError where not even one fits.
    """
    return _windows(tokens, _validation_offsets(tokens, block_size, count), block_size)


def _validation_offsets(tokens: TokenStream, block_size: int, count: int) -> np.ndarray:
    require_window(tokens, block_size)
    n = min(count, (len(tokens) - 1) // block_size)
    last = len(tokens) - block_size - 1
    return np.arange(n, dtype=np.int64) * last // max(n - 1, 1)


@dataclass(frozen=True)
class Clusters:
    """Which of the targets of the validation windows belong together: what the evaluation is a sample of.

    `of` [n, T] numbers the cluster of each target from 0 on; `unit` is "document", or "passage" (a window) where the
    windows hold fewer than 10 documents, which would say nothing of others.
    """

    unit: str
    of: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """Targets of each, [K]."""
        return torch.bincount(self.of.flatten())

    def means(self, losses: torch.Tensor) -> torch.Tensor:
        """Of losses [n, T], by cluster: float64 [K]."""
        return torch.bincount(self.of.flatten(), losses.flatten().double()) / self.sizes


def validation_clusters(tokens: TokenStream, *, block_size: int, count: int, eot: int) -> Clusters:
    """Of the windows that `validation_windows` gives; a document begins with the token `eot`."""
    offsets = _validation_offsets(tokens, block_size, count)
    parts = range(0, len(tokens), _SCAN)
    begins = [np.flatnonzero(tokens.read(at, min(_SCAN, len(tokens) - at)) == eot) + at for at in parts]
    document = np.searchsorted(np.concatenate(begins), offsets[:, None] + np.arange(1, block_size + 1), side="right")
    found, of = np.unique(document, return_inverse=True)
    if len(found) >= _DOCUMENTS:
        return Clusters("document", torch.from_numpy(of.reshape(document.shape)))
    return Clusters("passage", torch.arange(len(offsets))[:, None].expand(-1, block_size))


def require_window(tokens: TokenStream, block_size: int) -> None:
    """Raises DataError where `tokens` cannot fill one window."""
    if len(tokens) < block_size + 1:
        raise DataError(
            f"{tokens.name}: {len(tokens)} tokens; model.block_size = {block_size} needs {block_size + 1} at least"
        )


def _windows(tokens: TokenStream, offsets: np.ndarray, block_size: int) -> torch.Tensor:
    rows = [tokens.read(int(offset), block_size + 1) for offset in offsets]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
