"""N-gram losses on the validation windows: reference values that a trained model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TRAIN_CAP = 20_000_000  # tokens counted; more changes the losses little and takes seconds


@dataclass(frozen=True)
class _Pairs:
    """The distinct bigrams of a text: sorted keys first * V + second, and the count of each."""

    keys: np.ndarray  # int64 [distinct]
    counts: np.ndarray  # int64 [distinct]
    vocab_size: int

    @property
    def first(self) -> np.ndarray:
        return self.keys // self.vocab_size

    @property
    def second(self) -> np.ndarray:
        return self.keys % self.vocab_size

    def of(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the count of each pair, [n]."""
        asked = first * self.vocab_size + second
        at = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        return np.where(self.keys[at] == asked, self.counts[at], 0)


def ngram_nats(train: np.ndarray, windows: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Computes nats per predicted token over `windows`, int [w, T + 1], of models counted on `train`, [n].

    uniform: log V. unigram: counts plus 0.1. bigram: Kneser-Ney, interpolated with its continuation counts, which are
    interpolated with the uniform distribution.
    """
    train = train.astype(np.int64)
    first, second = windows[:, :-1].ravel(), windows[:, 1:].ravel()
    counts = np.bincount(train, minlength=vocab_size)
    unigram = (counts + 0.1) / (len(train) + 0.1 * vocab_size)
    keys, pair_counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    bigram = _kneser_ney(_Pairs(keys, pair_counts, vocab_size), first, second)
    return {
        "uniform": float(np.log(vocab_size)),
        "unigram": float(-np.log(unigram[second]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }


def _kneser_ney(pairs: _Pairs, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns P(second | first) for each pair, [n]."""
    v = pairs.vocab_size
    discount = _discount(pairs.counts)
    # continuation: the number of distinct contexts of a token; the discounted mass goes to the uniform distribution
    contexts = np.bincount(pairs.second, minlength=v)  # [V]
    lower_discount = _discount(contexts[contexts > 0])
    spared = lower_discount * np.count_nonzero(contexts) / len(pairs.keys)
    lower = np.maximum(contexts - lower_discount, 0) / len(pairs.keys) + spared / v  # [V], sums to 1
    total = np.bincount(pairs.first, pairs.counts, minlength=v)[first]
    followers = np.bincount(pairs.first, minlength=v)[first]
    seen = np.maximum(total, 1)  # an unseen context backs off completely
    backoff = np.where(total > 0, discount * followers / seen, 1.0)
    return np.maximum(pairs.of(first, second) - discount, 0) / seen + backoff * lower[second]


def _discount(counts: np.ndarray) -> float:
    """Returns Ney's estimate n1 / (n1 + 2 n2), from the number of counts equal to 1 and 2, clipped to [0.1, 0.9]."""
    ones, twos = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return float(np.clip(ones / max(ones + 2 * twos, 1), 0.1, 0.9))
