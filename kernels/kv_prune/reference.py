"""Plain-PyTorch pruned attention: the definition that every kernel must match.

Shape letters: B batch, H heads, T tokens, D head_dim, R blocks of queries.
A key j is visible to the queries i with j <= i < life_j: it is seen until it is evicted, and never again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, life: Tensor, scale: float) -> Tensor:
    """Softmax over the visible keys, on their values; q, k, v [B, H, T, D], life [B, H, T] -> [B, H, T, D]."""
    return _probs(q, k, life, scale) @ v


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, life: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; who is visible is decided, and has none."""
    probs = _probs(q, k, life, scale)
    d_probs = grad @ v.mT
    d_scores = scale * probs * (d_probs - (d_probs * probs).sum(-1, keepdim=True))
    return d_scores @ k, d_scores.mT @ q, probs.mT @ grad


def keep(
    q: Tensor, k: Tensor, order: Tensor | None, *, counts: list[int], recent: list[int], block: int, sinks: int,
    exposure: bool, both: bool, scale: float,
) -> Tensor:  # fmt: skip
    """life [B, H, T]: the token from which on each key is gone, T where it stays to the end.

    At the end of each block but the last, the best counts[r] of what is there stay: first the newest key, then the
    `sinks` first ones, then the recent[r] newest, then by the mass received so far, over the number of queries that
    could see the key (`exposure`), or by `order` [H, T]. Equals: the older stays. The mass is that of attention over
    what is there (`both`), or over all keys.
    """
    n_token = q.shape[2]
    life = torch.full(q.shape[:3], n_token, device=q.device, dtype=torch.int32)
    whole, places = life.clone(), torch.arange(n_token, device=q.device)
    total = torch.zeros(q.shape[:3], dtype=q.dtype, device=q.device)
    for r in range(-(-n_token // block) - 1):
        seen = (r + 1) * block
        rows = slice(r * block, seen)
        total = total + _probs(q, k, life if both else whole, scale)[:, :, rows].sum(2)
        value = total / (seen - places).clamp(min=1) if exposure else total
        value = value if order is None else order.to(value.dtype).expand_as(value)
        rank = torch.where(places >= seen - recent[r], 1, torch.zeros_like(places))
        rank = torch.where(places < sinks, 2, rank)
        rank = torch.where(places == seen - 1, 3, rank)
        there = (places < seen) & (life >= seen)
        best = _ordered(value, rank, places)  # positions, best first
        ranked = there.gather(-1, best)
        stays = torch.zeros_like(there).scatter_(-1, best, ranked & (ranked.cumsum(-1) <= counts[r]))
        life = torch.where(there & ~stays, seen, life)
    return life


def listed(life: Tensor, block: int, n_token: int) -> Tensor:
    """kept [B, H, R, T]: at r, in their order, the positions before block r that its queries see, T behind the last."""
    places = torch.arange(n_token, device=life.device, dtype=torch.int32)
    starts = range(0, n_token, block)
    seen = [torch.where((places < start) & (life > start), places, n_token).sort(dim=-1).values for start in starts]
    return torch.stack(seen, dim=2)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, places: Tensor | None, weight: Tensor | None, *, renormalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [B, H, S, E], how much of the probability is spent [B, H, S], and what each value received [B, H, M].

    q [B, H, S, D] are the newest S of the tokens in keys [B, H, N, D]. Values [B, H, M, E] are those of all keys, or of
    the keys at `places` [B, H, M]; `weight` [B, H, M] is 0 for a value that is there for other heads only, else 1.
    """
    n_query, n_key = q.shape[2], keys.shape[2]
    visible = torch.ones(n_query, n_key, dtype=torch.bool, device=q.device).tril(n_key - n_query)
    scores = scale * q @ keys.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    probs = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    if places is not None:
        probs = probs.gather(3, places[:, :, None].expand(-1, -1, n_query, -1))
    received = probs.sum(2)
    spent = probs if weight is None else probs * weight[:, :, None]
    total = spent.sum(-1)
    if renormalise:
        spent = spent / total[..., None]
    return spent.to(values.dtype) @ values, total, received


def _ordered(value: Tensor, rank: Tensor, places: Tensor) -> Tensor:
    """Positions by rank, then among the newest by age, then by value; equals by position."""
    by_value = value.argsort(dim=-1, descending=True, stable=True)
    # among the recent the newest, among the sinks the first
    key = torch.where(rank == 1, places, torch.where(rank == 2, -places, 0)) + rank * (4 * places.numel())
    return by_value.gather(-1, key.expand_as(value).gather(-1, by_value).argsort(dim=-1, descending=True, stable=True))


def _probs(q: Tensor, k: Tensor, life: Tensor, scale: float) -> Tensor:
    at = torch.arange(q.shape[2], device=q.device)
    visible = (at[:, None] >= at) & (at[:, None] < life[:, :, None])  # [B, H, T, T]
    return (scale * q @ k.mT).masked_fill(~visible, float("-inf")).softmax(-1)
