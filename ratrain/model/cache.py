"""What decoding keeps of each token, per layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ValueCode:
    """How a cache keeps values: this one, as they are. A value seam that has another says so in `code()`.

    Values [B, H, S, D] are kept as codes [B, H, S, channels], and read back as values. Attention makes mixtures A v of
    values over tokens; it may mix `fold(codes)` in their place, and `unfold` makes A v of what comes out.
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
    """What one layer's attention core keeps of each token (keys and values), in storage for `length` tokens.

    `size` is the number of tokens so far, and so the position of the next one.
    """

    def __init__(self, length: int, code: ValueCode = PLAIN):
        self.length, self.code, self.size = length, code, 0
        self.held: list[Tensor] = []  # each [B, H, length, channels], the codes of values last

    @property
    def nbytes(self) -> tuple[int, int]:
        """Of the keys (and what else scores) and of the values of the tokens so far."""
        sizes = [held[:, :, : self.size].numel() * held.element_size() for held in self.held]
        return sum(sizes[:-1]), sum(sizes[-1:])

    def append(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Adds tensors [B, H, S, channels], the same at every call and values last; returns each for all tokens."""
        *others, codes = self.store(*fresh)
        return *others, self.code.decompress(codes)

    def store(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """As `append`, but what is returned of the values are their codes; all as views of what is held."""
        fresh = *fresh[:-1], self.code.compress(fresh[-1])
        self.held = self.held or [t.new_empty(*t.shape[:2], self.length, t.shape[3]) for t in fresh]
        start, self.size = self.size, self.size + fresh[0].shape[2]
        for held, new in zip(self.held, fresh, strict=True):
            held[:, :, start : self.size] = new
        return tuple(held[:, :, : self.size] for held in self.held)


def recall(cache: Any, name: str, x: Tensor, reach: int) -> Tensor:
    """The `reach` rows before x [B, S, C], zeros before the first token; a layer's cache keeps them under `name`."""
    none = x.new_zeros(x.shape[0], reach, x.shape[2])
    if cache is None:
        return none
    past = vars(cache).setdefault("past", {})
    before = past.get(name, none)
    past[name] = torch.cat([before, x], dim=1)[:, -reach:]
    return before
