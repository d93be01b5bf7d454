# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: importance of keys, selection of the kept keys, and attention over them; no T x T array is stored.

`sum` and `mass` each compute the scores once: for the log of each row's sum, and for the mass of each column per block
of queries. `select` holds one head in one program: for each block it adds the mass, finds by bisection over the bits of
a float the value above which `count` keys lie, and lists these keys before the evicted ones. `attend` has a program per
tile of queries, which gathers the keys kept before its block from that list, then iterates over its own block. In the
backward pass a program owns keys sorted by life, so that the keys of a tile are seen by nearly the same queries.
Learned counts need the place of each candidate, which `place` finds by counting, and, in the queries' backward pass,
the keys just evicted as well. No atomics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.placement import HEAD_DIMS
from ratrain.kernels.tiles import LOG2E, product, rows_of, strides
from ratrain.kernels.tuning import Case, Tile, config, size_of

from . import decoding


@triton.jit
def _sum_kernel(
    q, k, life, lse, q_b, q_h, q_t, k_b, k_h, k_t, n_head, n_token, begin, end, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """lse [B, H, T] (base 2) of the scores of queries begin to end, over the keys that they see."""
    tile, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    rows = begin + tile * BLOCK + tl.arange(0, BLOCK)
    inside = rows < end
    row = rows_of(q + b * q_b + h * q_h, rows, q_t, inside, D)
    row = (row * (scale * LOG2E)).to(row.dtype)
    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for at in range(0, tl.minimum(begin + (tile + 1) * BLOCK, end), STEP):
        cols = at + tl.arange(0, STEP)
        there = cols < end
        scores = product(row, tl.trans(rows_of(k + b * k_b + h * k_h, cols, k_t, there, D)))
        gone = tl.load(life + bh * n_token + cols, mask=there, other=0)
        scores = tl.where((cols[None, :] <= rows[:, None]) & (rows[:, None] < gone[None, :]), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row without a visible key so far
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(scores - safe[:, None]), 1)
        top = new_top
    total = tl.where(inside, total, 1.0)  # a row beyond the end has no keys
    tl.store(lse + bh * n_token + rows, top + tl.log2(total), mask=inside)


@triton.jit
def _mass_kernel(
    q, k, life, lse, mass, q_b, q_h, q_t, k_b, k_h, k_t, n_head, n_token, n_block, first, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """mass [B, H, R, T]: attention from the queries of block `first` + program to a tile of keys."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r = first + tl.program_id(2)
    b, h = bh // n_head, bh % n_head
    cols = tile * BLOCK + tl.arange(0, BLOCK)
    there = cols < n_token
    begin, end = r * n_block, tl.minimum((r + 1) * n_block, n_token)
    given = tl.zeros([BLOCK], tl.float32)
    if tile * BLOCK < end:
        col = rows_of(k + b * k_b + h * k_h, cols, k_t, there, D)
        col = (col * (scale * LOG2E)).to(col.dtype)
        gone = tl.load(life + bh * n_token + cols, mask=there, other=0)
        for at in range(begin, end, STEP):
            rows = at + tl.arange(0, STEP)
            inside = rows < end
            scores = product(col, tl.trans(rows_of(q + b * q_b + h * q_h, rows, q_t, inside, D)))
            sums = tl.load(lse + bh * n_token + rows, mask=inside, other=float("inf"))
            probs = tl.exp2(scores - sums[None, :])
            given += tl.sum(tl.where((cols[:, None] <= rows[None, :]) & (rows[None, :] < gone[:, None]), probs, 0.0), 1)
    n_rows = tl.cdiv(n_token, n_block)
    tl.store(mass + (bh * n_rows + r) * n_token + cols, given, mask=there)


@triton.jit
def _ordered_bits(value, at, there, seen, newest, n_sink, n_token):
    """Sort keys [SIZE] int32, highest for the keys kept longest; -1 for a key that is not there."""
    bits = value.to(tl.int32, bitcast=True)  # nonnegative floats have the order of their bits
    above = 0x7F800000  # preferred keys lie above every float; below 2^31 up to two million tokens
    bits = tl.where(at >= seen - newest, above + 1 + at, bits)
    bits = tl.where(at < n_sink, above + 2 * n_token - at, bits)
    bits = tl.where(at == seen - 1, above + 3 * n_token, bits)
    return tl.where(there, bits, -1)


@triton.jit
def _best(bits, count, n_token):
    """Mask of the `count` highest; ties go to the first positions."""
    low, high = tl.full([], 0, tl.int32), 0x7F800000 + 4 * n_token
    while low < high:  # the smallest bits that fewer than `count` keys exceed
        middle = low + (high - low) // 2
        more = tl.sum((bits > middle).to(tl.int32), 0)
        low = tl.where(more < count, low, middle + 1)
        high = tl.where(more < count, middle, high)
    better, equal = bits > low, bits == low
    room = count - tl.sum(better.to(tl.int32), 0)
    return better | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))


@triton.jit
def _select_kernel(
    mass, order, counts, recent, active, total, life, listed, held, by_life, bits,
    n_head, n_token, n_block, n_end, n_sink, first, last,
    EXPOSED: tl.constexpr, ORDERED: tl.constexpr, RANKED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Evicts at the ends of blocks `first` to `last` - 1: total, life [B, H, T], by mass [B, H, R, T] or order [H, T].

    counts [H, R - 1], or [R - 1] if n_end is 0; all stay if active is 0. listed, bits [B, H, R, T]: at r, the
    candidates at the start of block r, kept keys before evicted ones, and their sort keys; held [B, H, R]: the number
    of kept keys. by_life [B, H, T]: positions, ascending by life.
    """
    bh = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < n_token
    n_rows = tl.cdiv(n_token, n_block)
    n_kept = tl.load(held + bh * n_rows + first)
    ends = tl.load(life + bh * n_token + at, mask=inside, other=0)
    if ORDERED:
        gathered = tl.load(order + (bh % n_head) * n_token + at, mask=inside, other=0.0)
    else:
        gathered = tl.load(total + bh * n_token + at, mask=inside, other=0.0)
    for r in range(first, last):
        seen = (r + 1) * n_block
        if not ORDERED:
            gathered += tl.load(mass + (bh * n_rows + r) * n_token + at, mask=inside, other=0.0)
        value = gathered
        if EXPOSED:
            value = value / tl.maximum(seen - at, 1).to(tl.float32)
        there = (at < seen) & (ends >= seen)
        found = _ordered_bits(value, at, there, seen, tl.load(recent + r), n_sink, n_token)
        count = tl.load(counts + (bh % n_head) * n_end + r)
        stays = _best(found, tl.where(tl.load(active) > 0, count, seen), n_token)
        leaves = there & ~stays
        ends = tl.where(leaves, seen, ends)
        n_gone, n_kept = r * n_block - n_kept, tl.sum(stays.to(tl.int32), 0)
        among = tl.cumsum(leaves.to(tl.int32), 0) - 1
        tl.store(by_life + bh * n_token + n_gone + among, at, mask=leaves)
        row = (bh * n_rows + r + 1) * n_token
        place = tl.where(stays, tl.cumsum(stays.to(tl.int32), 0) - 1, n_kept + among)
        tl.store(listed + row + place, at, mask=there)
        if RANKED:
            tl.store(bits + row + place, found, mask=there)
        tl.store(held + bh * n_rows + r + 1, n_kept)
    tl.store(life + bh * n_token + at, ends, mask=inside)
    if not ORDERED:
        tl.store(total + bh * n_token + at, gathered, mask=inside)
    lasting = inside & (ends == n_token)
    place = last * n_block - n_kept + tl.cumsum(lasting.to(tl.int32), 0) - 1
    tl.store(by_life + bh * n_token + place, at, mask=lasting)


@triton.jit
def _place_kernel(
    bits, held, place, n_token, n_block,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """place [B, H, R, T]: at r, in the order of listed, the rank of each candidate; T beyond."""
    tile, bh, r = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    n_rows = tl.num_programs(2)
    n_listed = _n_listed(held + bh * n_rows, r, n_block)
    row = (bh * n_rows + r) * n_token
    own = tile * BLOCK + tl.arange(0, BLOCK)
    there = own < n_listed
    mine = tl.load(bits + row + own, mask=there, other=0)
    before = tl.zeros([BLOCK, STEP], tl.int32)
    if tile * BLOCK < n_listed:
        for at in range(0, n_listed, STEP):
            other = at + tl.arange(0, STEP)
            theirs = tl.load(bits + row + other, mask=other < n_listed, other=-1)
            # on ties the older key stays; ties are listed in that order
            first = (other[None, :] < own[:, None]).to(tl.int32)
            before += (theirs[None, :] + first > mine[:, None]).to(tl.int32)
    tl.store(place + row + own, tl.where(there, tl.sum(before, 1), n_token), mask=own < n_token)


@triton.jit
def _n_listed(held, r, n_block):
    """Number of candidates at the start of block r: the keys kept before block r - 1, and the keys of block r - 1."""
    return tl.load(held + r - 1, mask=r > 0, other=-n_block) + n_block


@triton.jit
def _queries_of(program, n_tile, n_block, n_token, BLOCK: tl.constexpr):
    """Of a program: its block of queries r, the block's first row, the end of its part; its rows, and their mask."""
    r, tile = program // n_tile, program % n_tile
    begin, end = r * n_block, tl.minimum((r + 1) * n_block, n_token)
    rows = begin + tile * BLOCK + tl.arange(0, BLOCK)
    return r, begin, tl.minimum(begin + (tile + 1) * BLOCK, end), rows, rows < end


@triton.jit
def _softmax_step(acc, top, total, row, keys, values, visible):
    scores = product(row, tl.trans(keys))
    scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top)
    probs, fade = tl.exp2(scores - safe[:, None]), tl.exp2(top - safe)
    acc = product(probs.to(values.dtype), values, acc * fade[:, None])
    return acc, new_top, total * fade + tl.sum(probs, 1)


@triton.jit
def _attend_kernel(
    q, k, v, listed, held, out, lse,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, n_head, n_token, n_block, n_tile, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out [B, T, H, D], lse [B, H, T] over the first held[r] of listed[r] and the keys of the block itself."""
    program, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, begin, end, rows, inside = _queries_of(program, n_tile, n_block, n_token, BLOCK)
    b, h = bh // n_head, bh % n_head
    q, k, v = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h
    d = tl.arange(0, D)
    row = rows_of(q, rows, q_t, inside, D)
    row = (row * (scale * LOG2E)).to(row.dtype)
    acc = tl.zeros([BLOCK, D], tl.float32)
    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    n_rows = tl.cdiv(n_token, n_block)
    n_kept = tl.load(held + bh * n_rows + r)
    listed += (bh * n_rows + r) * n_token
    for at in range(0, n_kept, STEP):
        places = at + tl.arange(0, STEP)
        there = places < n_kept
        cols = tl.load(listed + places, mask=there, other=0)
        acc, top, total = _softmax_step(
            acc, top, total, row, rows_of(k, cols, k_t, there, D), rows_of(v, cols, v_t, there, D), there[None, :],
        )  # fmt: skip
    for at in range(begin, end, STEP):
        cols = at + tl.arange(0, STEP)
        there = cols < end
        acc, top, total = _softmax_step(
            acc, top, total, row, rows_of(k, cols, k_t, there, D), rows_of(v, cols, v_t, there, D),
            (cols[None, :] <= rows[:, None]) & there[None, :],
        )  # fmt: skip
    head, where = (b * n_token * n_head + h) * D, rows[:, None] * (n_head * D) + d[None, :]
    total = tl.where(inside, total, 1.0)
    tl.store(out + head + where, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + bh * n_token + rows, top + tl.log2(total), mask=inside)


@triton.jit
def _d_scores(row, d_o, sums, delta, keys, values, visible):
    probs = tl.exp2(product(row, tl.trans(keys)) - sums[:, None])
    d_probs = product(d_o, tl.trans(values))
    return tl.where(visible, probs * (d_probs - delta[:, None]), 0.0)


@triton.jit
def _slope(count, place, width):
    """Derivative of a soft rank, sigmoid((count - place - 0.5) / width), by the count."""
    faded = tl.exp(-tl.abs((count - place.to(tl.float32) - 0.5) / width))
    return faded / ((1 + faded) * (1 + faded) * width)


@triton.jit
def _queries_kernel(
    q, k, v, listed, held, place, soft_counts, grad, out, lse, delta, d_q, d_count,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, n_head, n_token, n_block, n_tile, scale, softness,
    LEARNED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_q [B, T, H, D], and delta [B, H, T] for the keys' kernel, which runs after this one.

    If the counts are learned, also d_count [B, H, R, tiles], over all candidates at the start of the block, evicted
    ones included: an evicted key has the probability exp(score) over the sum of the visible keys.
    """
    program, bh = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, begin, end, rows, inside = _queries_of(program, n_tile, n_block, n_token, BLOCK)
    b, h = bh // n_head, bh % n_head
    q, k, v = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h
    d = tl.arange(0, D)
    head, where = (b * n_token * n_head + h) * D, rows[:, None] * (n_head * D) + d[None, :]
    row, d_o = rows_of(q, rows, q_t, inside, D), rows_of(grad + b * g_b + h * g_h, rows, g_t, inside, D)
    row = (row * (scale * LOG2E)).to(row.dtype)
    y = tl.load(out + head + where, mask=inside[:, None], other=0.0).to(tl.float32)
    taken = tl.sum(d_o.to(tl.float32) * y, 1)
    tl.store(delta + bh * n_token + rows, taken, mask=inside)
    sums = tl.load(lse + bh * n_token + rows, mask=inside, other=float("inf"))
    n_rows = tl.cdiv(n_token, n_block)
    n_kept = tl.load(held + bh * n_rows + r)
    n_walked, count, width = n_kept, 0.0, 1.0
    if LEARNED:
        n_walked, width = _n_listed(held + bh * n_rows, r, n_block), softness * begin
        count = tl.load(soft_counts + h * (n_rows - 1) + r - 1, mask=r > 0, other=0.0)
    listed_at = (bh * n_rows + r) * n_token
    acc, moved = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK], tl.float32)
    for at in range(0, n_walked, STEP):
        places = at + tl.arange(0, STEP)
        there = places < n_walked
        cols = tl.load(listed + listed_at + places, mask=there, other=0)
        keys, values = rows_of(k, cols, k_t, there, D), rows_of(v, cols, v_t, there, D)
        d_scores = _d_scores(row, d_o, sums, taken, keys, values, there[None, :])
        if LEARNED:
            slope = _slope(count, tl.load(place + listed_at + places, mask=there, other=0), width)
            moved += tl.sum(d_scores * slope[None, :], 1)
            d_scores = tl.where(places[None, :] < n_kept, d_scores, 0.0)
        acc = product(d_scores.to(keys.dtype), keys, acc)
    if LEARNED:
        tl.store(d_count + bh * tl.num_programs(0) + program, tl.sum(moved, 0))
    for at in range(begin, end, STEP):
        cols = at + tl.arange(0, STEP)
        there = cols < end
        keys, values = rows_of(k, cols, k_t, there, D), rows_of(v, cols, v_t, there, D)
        visible = (cols[None, :] <= rows[:, None]) & there[None, :]
        acc = product(_d_scores(row, d_o, sums, taken, keys, values, visible).to(keys.dtype), keys, acc)
    tl.store(d_q + head + where, (acc * scale).to(d_q.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _keys_kernel(
    q, k, v, by_life, life, grad, lse, delta, d_k, d_v,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, n_head, n_token, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_k, d_v [B, T, H, D]; by_life [B, H, T]: positions sorted by life, so that similar lives are adjacent."""
    tile, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    q, k, v, grad = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h, grad + b * g_b + h * g_h
    place, d = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    there = place < n_token
    cols = tl.load(by_life + bh * n_token + place, mask=there, other=n_token)
    gone = tl.load(life + bh * n_token + cols, mask=there, other=0)
    keys, values = rows_of(k, cols, k_t, there, D), rows_of(v, cols, v_t, there, D)
    scaled = (keys * (scale * LOG2E)).to(keys.dtype)
    sum_k, sum_v = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    begin, end = tl.min(cols, 0) // STEP * STEP, tl.max(gone, 0)
    for at in range(begin, end, STEP):
        rows = at + tl.arange(0, STEP)
        inside = rows < n_token
        q_i, d_o = rows_of(q, rows, q_t, inside, D), rows_of(grad, rows, g_t, inside, D)
        sums = tl.load(lse + bh * n_token + rows, mask=inside, other=float("inf"))
        probs = tl.exp2(product(scaled, tl.trans(q_i)) - sums[None, :])
        probs = tl.where((cols[:, None] <= rows[None, :]) & (rows[None, :] < gone[:, None]), probs, 0.0)
        sum_v = product(probs.to(d_o.dtype), d_o, sum_v)
        d_probs = product(values, tl.trans(d_o))
        taken = tl.load(delta + bh * n_token + rows, mask=inside, other=0.0)
        d_scores = (probs * (d_probs - taken[None, :])).to(q_i.dtype)
        sum_k = product(d_scores, q_i, sum_k)
    head, where = (b * n_token * n_head + h) * D, cols[:, None] * (n_head * D) + d[None, :]
    tl.store(d_k + head + where, (sum_k * scale).to(d_k.dtype.element_ty), mask=there[:, None])
    tl.store(d_v + head + where, sum_v.to(d_v.dtype.element_ty), mask=there[:, None])


_LENGTHS = "1024", "4096"  # context lengths for which `select` has tiles


POINTERS = {
    **decoding.POINTERS,
    **dict.fromkeys(("q", "k", "v", "out", "grad", "d_q", "d_k", "d_v"), "input"),
    **dict.fromkeys(("lse", "delta", "mass", "order", "total", "active", "soft_counts", "d_count"), "fp32"),
    **dict.fromkeys(("life", "listed", "held", "by_life", "place", "bits", "counts", "recent"), "i32"),
}


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time, including the kernels of decoding."""
    walks = {"sum": _sum_kernel, "mass": _mass_kernel, "attend": _attend_kernel, "keys": _keys_kernel}
    for dtype, head_dim in itertools.product((torch.bfloat16, torch.float32), HEAD_DIMS):
        size, constants = size_of(head_dim, dtype), {"D": head_dim}
        for phase, kernel in walks.items():
            yield Case("kv_prune", phase, size, kernel, constants, dtype)
        for learned in (False, True):
            flags = {"LEARNED": learned, **({} if learned else dict.fromkeys(("place", "soft_counts", "d_count")))}
            phase = "learned_queries" if learned else "queries"
            yield Case("kv_prune", phase, size, _queries_kernel, {**constants, **flags}, dtype)
    for size, ranked in itertools.product(_LENGTHS, (False, True)):
        flags = {
            "EXPOSED": True,
            "ORDERED": False,
            "order": None,
            "RANKED": ranked,
            **({} if ranked else {"bits": None}),
        }
        variant = "learned" if ranked else ""
        constants = {**flags, "SIZE": int(size)}
        yield Case("kv_prune", "select", size, _select_kernel, constants, variant=variant, products=False)
    yield Case("kv_prune", "place", "any", _place_kernel, {}, products=False)
    yield from decoding.cases()


def _tile(phase: str, q: Tensor) -> Tile:
    return config("kv_prune", phase, size_of(q.shape[-1], q.dtype))


def keep(
    q, k, order, active, counts: Tensor | tuple[int, ...], *, recent, block: int, sinks: int, exposure: bool,
    both: bool, ranked: bool, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """life [B, H, T], listed [B, H, R, T], held [B, H, R], by_life [B, H, T] and place [B, H, R, T], all int32.

    `counts` holds a number per block end, or one for each head [H, R - 1] int32; `recent` one per block end. `both`:
    keys are evicted with their values, so that the mass of a block depends on the keys kept before it; else the masses
    of all blocks are computed at once. place is empty unless `ranked`.
    """
    batch, n_head, n_token, head_dim = q.shape
    rows, wide = triton.cdiv(n_token, block), {"dtype": torch.float32, "device": q.device}
    whole = {"dtype": torch.int32, "device": q.device}
    life = torch.full((batch, n_head, n_token), n_token, **whole)
    listed, held = (
        torch.full((batch, n_head, rows, n_token), n_token, **whole),
        torch.zeros(batch, n_head, rows, **whole),
    )
    by_life = torch.empty_like(life) if rows > 1 else torch.arange(n_token, **whole).repeat(batch, n_head, 1)
    bits = torch.empty_like(listed) if ranked else None
    lse, total = torch.empty(life.shape, **wide), torch.zeros(life.shape, **wide)
    mass = torch.empty(listed.shape, **wide)
    sizes, heads = (*strides(q, k), n_head, n_token), batch * n_head
    numbers = _on_device(counts, q.device), _on_device(recent, q.device)
    for first, last in [(r, r + 1) for r in range(rows - 1)] if both else [(0, rows - 1)][: rows - 1]:
        begin, end = first * block, last * block
        if order is None:  # with an order the mass is unused
            tile = _tile("sum", q)
            _sum_kernel[triton.cdiv(end - begin, tile.block), heads](
                q, k, life, lse, *sizes, begin, end, scale, D=head_dim, **tile.options()
            )
            tile = _tile("mass", q)
            _mass_kernel[triton.cdiv(n_token, tile.block), heads, last - first](
                q, k, life, lse, mass, *sizes, block, first, scale, D=head_dim, **tile.options()
            )
        size = triton.next_power_of_2(n_token)
        tile = config("kv_prune", "select", next((key for key in _LENGTHS if int(key) >= size), _LENGTHS[-1]))
        _select_kernel[(heads,)](
            mass, order, *numbers, active, total, life, listed, held, by_life, bits, n_head, n_token, block,
            rows - 1 if isinstance(counts, Tensor) else 0, sinks, first, last,
            EXPOSED=exposure and order is None, ORDERED=order is not None, RANKED=ranked, SIZE=size,
            num_warps=tile.warps,
        )  # fmt: skip
    return life, listed, held, by_life, _places(bits, held, block) if ranked else life.new_empty(0)


def _places(bits: Tensor, held: Tensor, block: int) -> Tensor:
    """Rank of each listed candidate [B, H, R, T]."""
    batch, n_head, rows, n_token = bits.shape
    place, tile = torch.empty_like(bits), config("kv_prune", "place", "any")
    _place_kernel[triton.cdiv(n_token, tile.block), batch * n_head, rows](
        bits, held, place, n_token, block, **tile.options()
    )
    return place


def attend(q, k, v, listed, held, *, block: int, scale: float) -> tuple[Tensor, Tensor]:
    """y [B, H, T, D], stored as [B, T, H, D], and the log of each row's sum [B, H, T]."""
    batch, n_head, n_token, head_dim = q.shape
    out, lse = q.new_empty(batch, n_token, n_head, head_dim), q.new_empty(q.shape[:3], dtype=torch.float32)
    tile = _tile("attend", q)
    tiles = triton.cdiv(min(block, n_token), tile.block)
    _attend_kernel[triton.cdiv(n_token, block) * tiles, batch * n_head](
        q, k, v, listed, held, out, lse, *strides(q, k, v), n_head, n_token, block, tiles, scale,
        D=head_dim, **tile.options(),
    )  # fmt: skip
    return out.transpose(1, 2), lse


def backward(
    grad, q, k, v, life, listed, held, by_life, place, soft_counts, y, lse, *, block: int, softness: float,
    scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k and v, each [B, H, T, D], stored as [B, T, H, D]; of soft_counts [H, R - 1], empty for None."""
    batch, n_head, n_token, head_dim = q.shape
    d_q, d_k, d_v = (q.new_empty(batch, n_token, n_head, head_dim) for _ in range(3))
    delta, sizes = torch.empty_like(lse), (*strides(q, k, v, grad), n_head, n_token)
    rows, learned = triton.cdiv(n_token, block), soft_counts is not None
    tile = _tile("learned_queries" if learned else "queries", q)
    tiles = triton.cdiv(min(block, n_token), tile.block)
    d_count = lse.new_empty(batch, n_head, rows, tiles) if learned else None
    _queries_kernel[rows * tiles, batch * n_head](
        q, k, v, listed, held, place if learned else None, soft_counts, grad, y.transpose(1, 2).contiguous(), lse,
        delta, d_q, d_count, *sizes, block, tiles, scale, softness, LEARNED=learned, D=head_dim, **tile.options(),
    )  # fmt: skip
    tile = _tile("keys", q)
    _keys_kernel[triton.cdiv(n_token, tile.block), batch * n_head](
        q, k, v, by_life, life, grad, lse, delta, d_k, d_v, *sizes, scale, D=head_dim, **tile.options()
    )
    d_counts = lse.new_empty(0) if d_count is None else d_count.sum((0, 3))[:, 1:]
    return d_q.transpose(1, 2), d_k.transpose(1, 2), d_v.transpose(1, 2), d_counts


def _on_device(numbers: Tensor | tuple[int, ...], device: torch.device) -> Tensor:
    return numbers if isinstance(numbers, Tensor) else _copied(numbers, device)


@cache
def _copied(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Copies numbers to the device, once for equal numbers: a copy in every step would wait for the host."""
    return torch.tensor(numbers or (0,), dtype=torch.int32, device=device)
