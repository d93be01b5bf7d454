"""Plain-PyTorch pruned attention: the definition that every kernel must match.

Shape letters: B batch, H heads, T tokens, D head_dim, R blocks of queries.
Key j is visible to the queries i with j <= i < life_j: from its own token until it is evicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, life: Tensor, scale: float) -> Tensor:
    """Softmax over the visible keys, on their values; q, k, v [B, H, T, D], life [B, H, T] -> [B, H, T, D]."""
    return _probs(q, k, life, scale) @ v


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, life: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the visibility of keys is fixed, and life has no gradient."""
    probs = _probs(q, k, life, scale)
    d_probs = grad @ v.mT
    d_scores = scale * probs * (d_probs - (d_probs * probs).sum(-1, keepdim=True))
    return d_scores @ k, d_scores.mT @ q, probs.mT @ grad


def d_counts(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, life: Tensor, listed: Tensor, place: Tensor, counts: Tensor, *,
    block: int, softness: float, scale: float,
) -> Tensor:  # fmt: skip
    """Gradient [H, R - 1] of the number of kept keys at each block end but the last: straight-through, of a soft rank.

    In the block after token e, a key kept at e has the weight w_j = 1, an evicted one 0, and
    y_i = sum_j w_j p_ij v_j / sum_j w_j p_ij. So d loss / d w_j = sum_i p_ij / (sum_n w_n p_in) grad_i . (v_j - y_i),
    which is not 0 for an evicted key. w_j of a candidate at e has the gradient of
    sigmoid((counts - place_j - 0.5) / (softness e)).
    """
    n_token, rows = q.shape[2], listed.shape[2]
    scores = (scale * q @ k.mT).masked_fill(~_visible(torch.full_like(life, n_token)), float("-inf"))
    spent = scores.masked_fill(~_visible(life), float("-inf")).logsumexp(-1, keepdim=True)
    y = forward(q, k, v, life, scale)
    d_weights = (scores - spent).exp() * (grad @ v.mT - (grad * y).sum(-1, keepdim=True))  # [B, H, T, T]
    found = []
    for r in range(1, rows):
        candidate = listed[:, :, r] < n_token
        d_weight = d_weights[:, :, r * block : (r + 1) * block].sum(2)
        d_weight = d_weight.gather(-1, listed[:, :, r].clamp(max=n_token - 1).long())
        soft = ((counts[:, r - 1, None] - place[:, :, r] - 0.5) / (softness * r * block)).sigmoid()
        slope = soft * (1 - soft) / (softness * r * block)
        found.append(torch.where(candidate, d_weight * slope, 0).sum((0, 2)))
    return torch.stack(found, dim=1) if found else torch.zeros_like(counts)


def keep(
    q: Tensor, k: Tensor, order: Tensor | None, *, counts: Sequence[int] | Tensor, recent: Sequence[int], block: int,
    sinks: int, exposure: bool, both: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns life [B, H, T], the token at which each key is evicted, T if it stays to the end; and place [B, H, R, T],
    the rank of each key among the candidates at the start of block r, T for a key that is no candidate.

    At the end of each block but the last, the best counts[r] (of each head, counts[:, r]) of the remaining keys stay:
    first the newest key, then the `sinks` first ones, then the recent[r] newest, then by the mass received so far, over
    the number of queries that could see the key (`exposure`), or by `order` [H, T]. On ties the older key stays. The
    mass is the attention over the remaining keys (`both`), or over all keys.
    """
    n_token = q.shape[2]
    life = torch.full(q.shape[:3], n_token, device=q.device, dtype=torch.int32)
    whole, places = life.clone(), torch.arange(n_token, device=q.device)
    total = torch.zeros(q.shape[:3], dtype=q.dtype, device=q.device)
    found = [life.clone()]
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
        before = torch.empty_like(best).scatter_(-1, best, there.gather(-1, best).cumsum(-1)) - 1
        count = counts[:, r, None] if isinstance(counts, Tensor) else counts[r]
        life = torch.where(there & (before >= count), seen, life)
        found.append(torch.where(there, before, n_token).int())
    return life, torch.stack(found, dim=2)


def listed(life: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Returns listed [B, H, R, T]: at r, ascending, the positions before block r that its queries see, then those
    evicted at its start, then T as padding; and held [B, H, R]: the number of keys it sees. Both int32."""
    n_token = life.shape[-1]
    places = torch.arange(n_token, device=life.device, dtype=torch.int32)
    found, held = [], []
    for start in range(0, n_token, block):
        candidate, stays = (places < start) & (life >= start), (places < start) & (life > start)
        key = torch.where(stays, places, torch.where(candidate, n_token + places, 2 * n_token))
        by_key = key.sort(dim=-1).values
        found.append(torch.where(by_key < 2 * n_token, by_key % n_token, n_token).int())
        held.append(stays.sum(-1, dtype=torch.int32))
    return torch.stack(found, dim=2), torch.stack(held, dim=2)


def decode(
    q: Tensor, keys: Tensor, values: Tensor, places: Tensor | None, weight: Tensor | None, *, renormalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns y [B, H, S, E], the probability spent on present values [B, H, S], and the mass of each value [B, H, M].

    q [B, H, S, D] are the newest S of the tokens in keys [B, H, N, D]. Values [B, H, M, E] are those of all keys, or of
    the keys at `places` [B, H, M]; `weight` [B, H, M] is 0 for a value held for other heads only, else 1.
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
    """Positions by rank; within the recent newest first, within the sinks first position first, else by value; ties by
    position."""
    by_value = value.argsort(dim=-1, descending=True, stable=True)
    # among the recent the newest, among the sinks the first
    key = torch.where(rank == 1, places, torch.where(rank == 2, -places, 0)) + rank * (4 * places.numel())
    return by_value.gather(-1, key.expand_as(value).gather(-1, by_value).argsort(dim=-1, descending=True, stable=True))


def _probs(q: Tensor, k: Tensor, life: Tensor, scale: float) -> Tensor:
    return (scale * q @ k.mT).masked_fill(~_visible(life), float("-inf")).softmax(-1)


def _visible(life: Tensor) -> Tensor:
    """[B, H, T, T]"""
    at = torch.arange(life.shape[-1], device=life.device)
    return (at[:, None] >= at) & (at[:, None] < life[:, :, None])
