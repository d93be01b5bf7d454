"""What decoding keeps of each token, per layer."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """What one layer's attention core keeps of each token (keys and values), in storage for `length` tokens.

    `size` is the number of tokens so far, and so the position of the next one.
    """

    def __init__(self, length: int):
        self.length, self.size = length, 0
        self.held: list[Tensor] = []  # each [B, H, length, channels]

    @property
    def nbytes(self) -> tuple[int, int]:
        """Of the keys (and what else scores) and of the values of the tokens so far."""
        sizes = [held[:, :, : self.size].numel() * held.element_size() for held in self.held]
        return sum(sizes[:-1]), sum(sizes[-1:])

    def append(self, *fresh: Tensor) -> tuple[Tensor, ...]:
        """Adds tensors [B, H, S, channels], the same at every call; returns each for all tokens so far, as views."""
        self.held = self.held or [t.new_empty(*t.shape[:2], self.length, t.shape[3]) for t in fresh]
        start, self.size = self.size, self.size + fresh[0].shape[2]
        for held, new in zip(self.held, fresh, strict=True):
            held[:, :, start : self.size] = new
        return tuple(held[:, :, : self.size] for held in self.held)
