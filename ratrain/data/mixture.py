"""Several corpora as one: every row of a batch comes from one of them, chosen by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch

from ratrain.data.corpus import Corpus, overlap_of
from ratrain.data.ngram import TRAIN_CAP, ngram_nats
from ratrain.data.overlap import Overlap
from ratrain.data.sampling import Clusters, Windows, checked, local_rows, windows_at
from ratrain.data.tokenizer import bits_per_byte

_STREAM = 3  # of Philox; a batch of one corpus is drawn from stream 0, recall tasks from 1 and 2


@dataclass(frozen=True)
class Mixture:
    """Corpora of one tokenizer, and the probability of each, which sum to 1."""

    corpora: Sequence[Corpus]
    weights: Sequence[float]

    is_text = True

    @property
    def name(self) -> str:
        return " + ".join(corpus.name for corpus in self.corpora)

    @property
    def tokenizer(self) -> tiktoken.Encoding:
        return self.corpora[0].tokenizer

    @property
    def train_tokens(self) -> int:
        return sum(corpus.train_tokens for corpus in self.corpora)

    @property
    def val_tokens(self) -> int:
        return sum(corpus.val_tokens for corpus in self.corpora)

    @property
    def fingerprint(self) -> str:
        told = [[corpus.fingerprint, weight] for corpus, weight in zip(self.corpora, self.weights, strict=True)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def sampler(self, *, seed: int, batch: int, block_size: int, rank: int = 0, world: int = 1) -> MixtureSampler:
        return MixtureSampler(self, seed=seed, batch=batch, block_size=block_size, rank=rank, world=world)

    def validation(self, *, block_size: int, count: int) -> Windows:
        """Returns windows of every corpus, in the order of the corpora, as many as their weights give of `count`.

        If a corpus is too short for its part, there are fewer windows of all, so that the weights hold.
        """
        room = [(corpus.val_tokens - 1) // block_size for corpus in self.corpora]
        most = min(fits / weight for fits, weight in zip(room, self.weights, strict=True))
        shares = _shares(max(1, min(count, int(most))), self.weights)
        parts = [
            corpus.validation(block_size=block_size, count=share)
            for corpus, share in zip(self.corpora, shares, strict=True)
            if share
        ]
        inputs, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
        return Windows(inputs, targets, tuple(shares))

    def clusters(self, windows: Windows) -> Clusters:
        """Clusters each corpus apart; by passage if one of them has too few documents."""
        parts, at = [], 0
        for corpus, share in zip(self.corpora, windows.parts, strict=True):
            if share:
                parts.append(corpus.clusters(Windows(windows.inputs[at:][:share], windows.targets[at:][:share])))
            at += share
        if any(part.unit == "passage" for part in parts):
            return Clusters("passage", torch.arange(len(windows))[:, None].expand(windows.targets.shape))
        before = np.cumsum([0, *(int(part.of.max()) + 1 for part in parts)])
        return Clusters("document", torch.cat([part.of + int(n) for part, n in zip(parts, before, strict=False)]))

    def baselines(self, windows: Windows) -> dict[str, float]:
        """Returns nats per token of n-gram models, counted on a part of each corpus as large as its weight."""
        counted = [
            corpus.train.read(0, min(corpus.train_tokens, int(TRAIN_CAP * weight)))
            for corpus, weight in zip(self.corpora, self.weights, strict=True)
        ]
        return ngram_nats(np.concatenate(counted), windows.tokens.numpy(), self.tokenizer.n_vocab)

    def overlap(self) -> Overlap:
        """Returns the validation text of all corpora that is training text of any."""
        return overlap_of(self.corpora)

    def bits_per_byte(self, loss: float, targets: np.ndarray) -> float:
        return bits_per_byte(loss, targets, self.tokenizer.name)


def _shares(count: int, weights: Sequence[float]) -> list[int]:
    """Divides `count` in proportion to `weights`, by largest remainders."""
    exact = [count * weight for weight in weights]
    whole = [int(part) for part in exact]
    by_rest = sorted(range(len(exact)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_rest[: count - sum(whole)]:
        whole[at] += 1
    return whole


class MixtureSampler:
    """Draws the rows of rank r of N of every step; row r of step s depends on (seed, s, r) alone."""

    def __init__(self, data: Mixture, *, seed: int, batch: int, block_size: int, rank: int = 0, world: int = 1):
        self.data, self.seed, self.batch_size, self.block_size = data, seed, batch, block_size
        self.rows = local_rows(batch, rank=rank, world=world)
        self._ends = np.cumsum(data.weights)[:-1]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and targets of `step`, int64 [B / N, T] each; raises DataError as `Sampler.batch`."""
        rows, size = self.order(step)[self.rows], self.block_size
        parts = [windows_at(self.data.corpora[which].train, [offset], size) for which, offset in rows.tolist()]
        windows = checked(torch.cat(parts), self.data.tokenizer.n_vocab, f"the mixture, step {step}")
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def order(self, step: int) -> np.ndarray:
        """Returns the corpus and the offset of every row of `step`, int64 [B, 2]."""
        philox = np.random.Philox(key=self.seed % 2**128, counter=[0, 0, step, _STREAM])
        raw = philox.random_raw(2 * self.batch_size).reshape(self.batch_size, 2)
        which = np.searchsorted(self._ends, raw[:, 0].astype(np.float64) * 2.0**-64, side="right")
        spans = np.array([corpus.train_tokens - self.block_size for corpus in self.data.corpora])[which]
        offsets = (raw[:, 1].astype(object) * spans.astype(object) >> 64).astype(np.int64)  # the product needs 128 bits
        return np.stack([which, offsets], axis=1)
