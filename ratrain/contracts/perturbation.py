"""Tests for information leaks by edits of the input: of later tokens, and of other sequences of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]  # tokens [B, T] -> [B, T, V]


@dataclass(frozen=True)
class Leak:
    """An output of a sequence of `length` tokens that changed although only tokens from `edited` on were edited."""

    position: int
    edited: int
    length: int
    size: float  # of the largest change

    def __str__(self) -> str:
        return (
            f"{self.length} tokens: changing those from {self.edited} on changes the output at {self.position}"
            f" (by up to {self.size:.2g})"
        )


def random_tokens(vocab_size: int, rows: int, length: int) -> Tensor:
    """Returns random tokens [rows, length], the same at every call."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def suffix_leak(logits: Logits, tokens: Tensor, vocab_size: int, *, tolerance: float = 0.0) -> Leak | None:
    """Returns the first output that depends on a later token, or None; edits from the second, middle and last token."""
    length, whole = tokens.shape[1], logits(tokens)
    for at in sorted({1, length // 2, length - 1}):
        edited = tokens.clone()
        edited[:, at:] = (edited[:, at:] + 1) % vocab_size
        before, after = whole[:, :at], logits(edited)[:, :at]
        seen = differs(before, after, tolerance).any(-1).any(0).nonzero()
        if len(seen):
            return Leak(int(seen[0]), at, length, float((after - before).abs().max()))
    return None


def batch_leak(logits: Logits, tokens: Tensor, vocab_size: int, *, tolerance: float = 0.0) -> bool:
    """Returns whether an edit of the first or last sequence of [B, T], B >= 2, changes the outputs of the others."""
    whole = logits(tokens)
    for row in (0, len(tokens) - 1):
        edited = tokens.clone()
        edited[row] = (edited[row] + 1) % vocab_size
        others = [other for other in range(len(tokens)) if other != row]
        if differs(whole[others], logits(edited)[others], tolerance).any():
            return True
    return False


@torch.no_grad()
def shake(module: nn.Module) -> None:
    """Adds noise to every weight, so that none is zero and no two are equal."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        if p.is_floating_point():
            spread = 0.1 * float(p.float().pow(2).mean().sqrt()) + 0.02
            p.add_((spread * torch.randn(p.shape, generator=generator)).to(p.dtype))


def differs(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Returns the mask of entries that differ by more than `tolerance`: equal infinities do not, NaN always does."""
    return (before != after) & ~((before - after).abs() <= tolerance)


def without_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Returns the names of parameters whose gradient is absent, all zero or not finite."""
    return [n for n, p in named if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
