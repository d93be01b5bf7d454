# pyright: reportCallIssue=false, reportArgumentType=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: attention of one query per head over a cache that keeps some of its values.

One kernel scores all keys. Another turns scores into probabilities, adds them to the mass of each value, and sums the
values. Both are memory-bound, so both split the cache over many programs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.placement import HEAD_DIMS
from ratrain.kernels.tiles import LOG2E, rows_of, strides
from ratrain.kernels.tuning import Case, Tile, config, size_of


@triton.jit
def _scores_kernel(
    q, keys, scores, tops, totals, q_b, q_h, k_b, k_h, k_t, n_head, n_key, scale,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one query per head: scores [B, H, N] to base 2, and the maximum and the sum of each tile [B, H, tiles]."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    at, d = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    there = at < n_key
    row = tl.load(q + b * q_b + h * q_h + d).to(tl.float32) * (scale * LOG2E)
    found = tl.sum(rows_of(keys + b * k_b + h * k_h, at, k_t, there, D).to(tl.float32) * row[None, :], 1)
    tl.store(scores + bh * n_key + at, found, mask=there)
    found = tl.where(there, found, float("-inf"))
    top = tl.max(found, 0)
    part = bh * tl.num_programs(0) + tile
    tl.store(tops + part, top)
    tl.store(totals + part, tl.sum(tl.exp2(found - top), 0))


@triton.jit
def _mix_kernel(
    values, scores, tops, totals, places, weight, mass, y, spent, v_b, v_h, v_t, p_b, p_h, w_b, w_h, m_b, m_h,
    n_head, n_key, n_value, n_part,
    PLACED: tl.constexpr, WEIGHTED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """For a tile of values of one head: partial y [B, H, tiles, E] and spent [B, H, tiles]; adds to mass."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    parts = tl.arange(0, PARTS)
    top = tl.load(tops + bh * n_part + parts, mask=parts < n_part, other=float("-inf"))
    largest = tl.max(top, 0)
    total = tl.load(totals + bh * n_part + parts, mask=parts < n_part, other=0.0)
    norm = largest + tl.log2(tl.sum(total * tl.exp2(top - largest), 0))
    at, d = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    there = at < n_value
    where = at
    if PLACED:
        where = tl.load(places + b * p_b + h * p_h + at, mask=there, other=0)
    probs = tl.exp2(tl.load(scores + bh * n_key + where, mask=there, other=float("-inf")) - norm)
    held = mass + b * m_b + h * m_h + at
    tl.store(held, tl.load(held, mask=there, other=0.0) + probs, mask=there)
    if WEIGHTED:
        probs *= tl.load(weight + b * w_b + h * w_h + at, mask=there, other=0.0)
    mixed = tl.sum(probs[:, None] * rows_of(values + b * v_b + h * v_h, at, v_t, there, D).to(tl.float32), 0)
    part = bh * tl.num_programs(0) + tile
    tl.store(y + part * D + d, mixed)
    tl.store(spent + part, tl.sum(probs, 0))


POINTERS = {
    **dict.fromkeys(("q", "keys", "values"), "input"),
    **dict.fromkeys(("scores", "tops", "totals", "weight", "mass", "y", "spent"), "fp32"),
    "places": "i64",
}


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time."""
    for dtype, head_dim in itertools.product((torch.bfloat16, torch.float32), HEAD_DIMS):
        size = size_of(head_dim, dtype)
        for phase, kernel in {"scores": _scores_kernel, "mix": _mix_kernel}.items():
            flags = {"PLACED": True, "WEIGHTED": True, "PARTS": 64} if phase == "mix" else {}
            yield Case("kv_prune", phase, size, kernel, {"D": head_dim, **flags}, dtype, products=False)


def _tile(phase: str, x: Tensor) -> Tile:
    return config("kv_prune", phase, size_of(x.shape[-1], x.dtype))


def decode(q, keys, values, mass, places, weight, *, renormalise: bool, scale: float) -> tuple[Tensor, Tensor]:
    """y [B, H, 1, E] and the spent probability [B, H, 1], of one query per head; adds to mass [B, H, M] in place."""
    batch, n_head, n_key, head_dim = keys.shape
    n_value, heads = values.shape[2], batch * n_head
    wide = {"dtype": torch.float32, "device": q.device}
    tile = _tile("scores", q)
    n_part = triton.cdiv(n_key, tile.block)
    scores, tops, totals = (torch.empty(batch, n_head, n, **wide) for n in (n_key, n_part, n_part))
    _scores_kernel[n_part, heads](
        q, keys, scores, tops, totals, *q.stride()[:2], *strides(keys), n_head, n_key, scale,
        D=head_dim, BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip
    tile = _tile("mix", values)
    tiles = triton.cdiv(n_value, tile.block)
    y, spent = torch.empty(batch, n_head, tiles, values.shape[3], **wide), torch.empty(batch, n_head, tiles, **wide)
    _mix_kernel[tiles, heads](
        values, scores, tops, totals, places, weight, mass, y, spent,
        *strides(values), *_head_strides(places), *_head_strides(weight), *_head_strides(mass),
        n_head, n_key, n_value, n_part, PLACED=places is not None, WEIGHTED=weight is not None, D=values.shape[3],
        BLOCK=tile.block, PARTS=triton.next_power_of_2(n_part), num_warps=tile.warps,
    )  # fmt: skip
    y, spent = y.sum(2, keepdim=True), spent.sum(2, keepdim=True)
    return (y / spent[..., None] if renormalise else y).to(values.dtype), spent


def _head_strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))
