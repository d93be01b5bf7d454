"""The KV cache for decoding, per layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ValueCode:
    """The storage format of cached values: here the values themselves. A value seam returns another from `code()`.

    Values [B, H, S, D] are stored as codes [B, H, S, channels] and decompressed to values. Attention computes mixtures
    A v of values over tokens. It may mix `fold(codes)` instead; `unfold` then maps the result to A v.
    """

    def compress(self, v: Tensor) -> Tensor:
        return v

    def decompress(self, code: Tensor) -> Tensor:
        return code

    def fold(self, code: Tensor) -> Tensor:
        return self.decompress(code)

    def unfold(self, y: Tensor) -> Tensor:
        return y


PLAIN = ValueCode()


class KVCache:
    """Keys and values of one layer's attention core, with storage for `length` tokens.

    `size` is the number of cached tokens, and so the position of the next token.
    """

    def __init__(self, length: int, code: ValueCode = PLAIN):
        self.length, self.code, self.size = length, code, 0
        self.held: list[Tensor] = []  # each [B, H, length, channels], the codes of values last

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the cached keys (and any other tensors that form scores), and bytes of the cached values."""
        sizes = [held[:, :, : self.size].numel() * held.element_size() for held in self.held]
        return sum(sizes[:-1]), sum(sizes[-1:])

    def append(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Appends tensors [B, H, S, channels], in the same order per call, values last; returns all tokens of each."""
        *others, codes = self.store(*fresh)
        return *others, self.code.decompress(codes)

    def store(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Appends like `append`, but returns codes in place of values; all results are views of the storage."""
        fresh = *fresh[:-1], self.code.compress(fresh[-1])
        self.held = self.held or [t.new_empty(*t.shape[:2], self.length, t.shape[3]) for t in fresh]
        start, self.size = self.size, self.size + fresh[0].shape[2]
        for held, new in zip(self.held, fresh, strict=True):
            held[:, :, start : self.size] = new
        return tuple(held[:, :, : self.size] for held in self.held)


class InputCache:
    """The cache of a layer without keys and values, whose parts keep their inputs (`remember`)."""

    nbytes = 0, 0

    @property
    def size(self) -> int:
        return max((kept.size for kept in vars(self).get("inputs", {}).values()), default=0)


def new_cache(block: Any, length: int) -> Any:
    """Creates an empty cache of `length` tokens for a block, by the innermost part that has a `new_cache`."""
    if hasattr(block, "new_cache"):
        return block.new_cache(length)
    if hasattr(block.attn, "new_cache"):
        return block.attn.new_cache(length)
    code = block.attn.value.code() if hasattr(block.attn.value, "code") else PLAIN
    return block.attn.core.new_cache(length, code)


def remember(cache: Any, name: str, x: Tensor, length: int) -> Tensor:
    """Appends x [B, S, C] to the inputs that the cache of a layer keeps under `name`; returns all [B, T, C] of them.

    At most `length` tokens fit.
    """
    kept = vars(cache).setdefault("inputs", {}).setdefault(name, KVCache(length))
    return kept.append(x[:, None])[0][:, 0]


def held_bytes(cache: Any) -> tuple[int, int]:
    """Returns the bytes of the cached keys, and of the cached values and inputs."""
    keys, values = cache.nbytes
    return keys, values + sum(sum(kept.nbytes) for kept in vars(cache).get("inputs", {}).values())


def recall(cache: Any, name: str, x: Tensor, reach: int) -> Tensor:
    """Returns the `reach` rows before x [B, S, C], zeros before the first token; the cache stores them under `name`."""
    none = x.new_zeros(x.shape[0], reach, x.shape[2])
    if cache is None:
        return none
    past = vars(cache).setdefault("past", {})
    before = past.get(name, none)
    past[name] = torch.cat([before, x], dim=1)[:, -reach:]
    return before
