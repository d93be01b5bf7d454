"""Edits of the input that an output must not see: of later tokens, and of the other sequences of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]  # tokens [B, T] -> [B, T, V]


@dataclass(frozen=True)
class Leak:
    """An output, of a sequence of `length` tokens, that changed when only tokens from `edited` on were changed."""

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
    """[rows, length], the same at every call."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def suffix_leak(logits: Logits, tokens: Tensor, vocab_size: int, *, tolerance: float = 0.0) -> Leak | None:
    """The first output that sees a later token, where edits begin at the second, the middle and the last one."""
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
    """Whether the outputs of other sequences of [B, T], two or more, see the first or the last."""
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
    """Moves every weight by noise, so that none is zero, nor any two alike."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        if p.is_floating_point():
            spread = 0.1 * float(p.float().pow(2).mean().sqrt()) + 0.02
            p.add_((spread * torch.randn(p.shape, generator=generator)).to(p.dtype))


def differs(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Where two outputs are further apart than `tolerance`; equal infinities are not, what is no number always is."""
    return (before != after) & ~((before - after).abs() <= tolerance)


def without_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """The names of parameters that no gradient reaches, or one that is not finite."""
    return [n for n, p in named if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
