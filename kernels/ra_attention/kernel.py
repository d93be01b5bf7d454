# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (a launch passes what the compiled kernel takes, and not the parameters that stand here)
"""Triton: causal flash attention whose scores have a gate per channel and, if tied, the other direction as well.

One program owns a block of tokens of one head. Forward: its queries walk over the keys before them; where tied,
`gate q_i . k_j` and `w_r k_i . q_j` add up in one accumulator, so that nothing is ever twice as wide. Backward, two
kernels: a block of keys is walked over by all later queries, then a block of queries walks over the keys before it. A
token's q and k collect gradients in both roles: what the first kernel finds waits in fp32 for the second. No atomics:
equal inputs give equal bits. Probabilities are recomputed from the saved log of each row's sum, to base 2
(FlashAttention-2, Dao 2023, arXiv:2307.08691).

A tensor [B, H, T, D] comes with its three strides, and channels side by side: the packed projection is read in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.placement import HEAD_DIMS
from ratrain.kernels.tiles import LOG2E, product, rows_of, strides
from ratrain.kernels.tuning import Case, Tile, config, size_of


@triton.jit
def _scores(
    row_1, row_2, cols, inside, k, q, bias, stride_k, stride_q,
    TIED: tl.constexpr, BIASED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Of queries row_1 (and row_2, the other direction's) for the keys `cols`: [M, N], and those keys' k and q."""
    k_j = rows_of(k, cols, stride_k, inside, D)
    scores = product(row_1, tl.trans(k_j))
    q_j = k_j
    if TIED:
        q_j = rows_of(q, cols, stride_q, inside, D)
        scores = product(row_2, tl.trans(q_j), scores)
    if BIASED:
        scores += tl.load(bias + cols, mask=inside, other=0.0)[None, :] * LOG2E
    return scores, k_j, q_j


@triton.jit
def _seen(
    acc, top, total, row_1, row_2, rows, start, stop,
    k, q, v, bias, stride_k, stride_q, stride_v, n_token,
    TIED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Adds the keys from start to stop to an online softmax: acc [M, D], top and total [M]."""
    for at in range(start, stop, STEP):
        cols = at + tl.arange(0, STEP)
        inside = cols < n_token
        scores, _, _ = _scores(row_1, row_2, cols, inside, k, q, bias, stride_k, stride_q, TIED, BIASED, D)
        if MASKED:
            scores = tl.where((cols[None, :] <= rows[:, None]) & inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        probs, fade = tl.exp2(scores - new_top[:, None]), tl.exp2(top - new_top)
        total, top = total * fade + tl.sum(probs, 1), new_top
        values = rows_of(v, cols, stride_v, inside, D)
        acc = product(probs.to(values.dtype), values, acc * fade[:, None])
    return acc, top, total


@triton.jit
def _forward_kernel(
    q, k, v, gate, w_r, bias, alpha, out, plain, lse,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, n_head, n_token, scale,
    TIED: tl.constexpr, BIASED: tl.constexpr, BLENDED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out, plain [B, T, H, D]: y and, where it is blended, o; lse [B, H, T]."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest walks first
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    q, k, v = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h
    if BIASED:
        bias += bh * n_token
    rows, d = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    inside = rows < n_token
    row_1 = rows_of(q, rows, q_t, inside, D)
    row_1 = (row_1 * (tl.load(gate + h * D + d) * (scale * LOG2E))[None, :]).to(row_1.dtype)
    row_2 = row_1
    if TIED:
        row_2 = rows_of(k, rows, k_t, inside, D)
        row_2 = (row_2 * (tl.load(w_r + h) * scale * LOG2E)).to(row_2.dtype)
    acc = tl.zeros([BLOCK, D], tl.float32)
    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    acc, top, total = _seen(
        acc, top, total, row_1, row_2, rows, 0, block * BLOCK, k, q, v, bias, k_t, q_t, v_t, n_token,
        TIED, BIASED, False, D, STEP,
    )  # fmt: skip
    acc, top, total = _seen(
        acc, top, total, row_1, row_2, rows, block * BLOCK, tl.minimum((block + 1) * BLOCK, n_token),
        k, q, v, bias, k_t, q_t, v_t, n_token, TIED, BIASED, True, D, STEP,
    )  # fmt: skip
    acc = acc / total[:, None]
    tl.store(lse + bh * n_token + rows, top + tl.log2(total), mask=inside)
    head, at = (b * n_token * n_head + h) * D, rows[:, None] * (n_head * D) + d[None, :]
    if BLENDED:
        tl.store(plain + head + at, acc.to(plain.dtype.element_ty), mask=inside[:, None])
        acc += tl.load(alpha + h) * (rows_of(v, rows, v_t, inside, D).to(tl.float32) - acc)
    tl.store(out + head + at, acc.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _delta_kernel(
    grad, plain, v, alpha, delta, d_alpha,
    g_b, g_h, g_t, v_b, v_h, v_t, n_head, n_token,
    BLENDED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta [B, H, T]: what each row's softmax takes off, sum of d_o o; d_alpha [B, H, blocks]."""
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    rows, d = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    inside = rows < n_token
    head, at = (b * n_token * n_head + h) * D, rows[:, None] * (n_head * D) + d[None, :]
    o = tl.load(plain + head + at, mask=inside[:, None], other=0.0).to(tl.float32)
    g = rows_of(grad + b * g_b + h * g_h, rows, g_t, inside, D).to(tl.float32)
    dot = tl.sum(g * o, 1)
    if BLENDED:
        values = rows_of(v + b * v_b + h * v_h, rows, v_t, inside, D).to(tl.float32)
        tl.store(d_alpha + bh * tl.num_programs(0) + block, tl.sum(tl.sum(g * values, 1) - dot, 0))
        dot *= 1 - tl.load(alpha + h)
    tl.store(delta + bh * n_token + rows, dot, mask=inside)


@triton.jit
def _as_keys(
    d_v, d_k, d_q, d_bias, col_1, col_2, values, cols, key_bias, start, stop,
    q, k, grad, lse, delta, stride_q, stride_k, stride_g, n_token,
    TIED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What the queries from start to stop leave for a block of keys; d_k and d_q still lack gate, w_r and scale, and
    d_v the share of gradients that a blend gives to attention, which `values` come with."""
    for at in range(start, stop, STEP):
        rows = at + tl.arange(0, STEP)
        inside = rows < n_token
        q_i = rows_of(q, rows, stride_q, inside, D)
        scores = product(col_1, tl.trans(q_i))  # [keys, queries]
        k_i = q_i
        if TIED:
            k_i = rows_of(k, rows, stride_k, inside, D)
            scores = product(col_2, tl.trans(k_i), scores)
        if BIASED:
            scores += key_bias[:, None]
        # a row beyond the end has an infinite sum, and so no probabilities
        probs = tl.exp2(scores - tl.load(lse + rows, mask=inside, other=float("inf"))[None, :])
        if MASKED:
            probs = tl.where(cols[:, None] <= rows[None, :], probs, 0.0)
        d_o = rows_of(grad, rows, stride_g, inside, D)
        d_v = product(probs.to(d_o.dtype), d_o, d_v)
        d_probs = product(values, tl.trans(d_o))
        d_scores = probs * (d_probs - tl.load(delta + rows, mask=inside, other=0.0)[None, :])
        if BIASED:
            d_bias += tl.sum(d_scores, 1)
        d_scores = d_scores.to(q_i.dtype)
        d_k = product(d_scores, q_i, d_k)
        if TIED:
            d_q = product(d_scores, k_i, d_q)
    return d_v, d_k, d_q, d_bias


@triton.jit
def _as_queries(
    d_q, d_k, row_1, row_2, d_o, rows, row_lse, row_delta, start, stop,
    q, k, v, bias, stride_q, stride_k, stride_v, n_token,
    TIED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What the keys from start to stop leave for a block of queries; both still lack gate, w_r and scale."""
    for at in range(start, stop, STEP):
        cols = at + tl.arange(0, STEP)
        inside = cols < n_token
        scores, k_j, q_j = _scores(row_1, row_2, cols, inside, k, q, bias, stride_k, stride_q, TIED, BIASED, D)
        probs = tl.exp2(scores - row_lse[:, None])
        if MASKED:
            probs = tl.where((cols[None, :] <= rows[:, None]) & inside[None, :], probs, 0.0)
        d_probs = product(d_o, tl.trans(rows_of(v, cols, stride_v, inside, D)))
        d_scores = (probs * (d_probs - row_delta[:, None])).to(k_j.dtype)
        d_q = product(d_scores, k_j, d_q)
        if TIED:
            d_k = product(d_scores, q_j, d_k)
    return d_q, d_k


@triton.jit
def _keys_kernel(
    q, k, v, gate, w_r, bias, alpha, grad, lse, delta, d_k, d_v, half_q, half_k, d_gate, d_w_r, d_bias,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, n_head, n_token, scale,
    TIED: tl.constexpr, BIASED: tl.constexpr, BLENDED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_v, d_k [B, T, H, D]; d_gate, d_w_r [B, H, blocks, D], to be summed; d_bias [B, H, T].

    Where tied, half_q and half_k [B, T, H, D], fp32: what tokens get in this role, without scale; d_k waits for both.
    """
    block, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    q, k, v, grad = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h, grad + b * g_b + h * g_h
    lse, delta = lse + bh * n_token, delta + bh * n_token
    start, d = block * BLOCK, tl.arange(0, D)
    own = start + tl.arange(0, BLOCK)
    inside = own < n_token
    gates = tl.load(gate + h * D + d)[None, :]
    k_own, values = rows_of(k, own, k_t, inside, D), rows_of(v, own, v_t, inside, D)
    # (gate q) . k is q . (gate k): gated once, on the side that stays in place
    col_1 = (k_own * (gates * (scale * LOG2E))).to(k_own.dtype)
    col_2, w = col_1, 0.0
    if TIED:
        w = tl.load(w_r + h)
        col_2 = (rows_of(q, own, q_t, inside, D) * (w * scale * LOG2E)).to(k_own.dtype)
    if BLENDED:  # attention's part of each gradient, on the side that stays in place
        values = (values * (1 - tl.load(alpha + h))).to(values.dtype)
    key_bias = tl.zeros([BLOCK], tl.float32)
    if BIASED:
        key_bias = tl.load(bias + bh * n_token + own, mask=inside, other=0.0) * LOG2E
    sum_v, from_q, from_k = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32), 0.0
    if TIED:
        from_k = tl.zeros([BLOCK, D], tl.float32)
    sum_bias = tl.zeros([BLOCK], tl.float32)
    sum_v, from_q, from_k, sum_bias = _as_keys(
        sum_v, from_q, from_k, sum_bias, col_1, col_2, values, own, key_bias, start,
        tl.minimum(start + BLOCK, n_token), q, k, grad, lse, delta, q_t, k_t, g_t, n_token, TIED, BIASED, True, D, STEP,
    )  # fmt: skip
    sum_v, from_q, from_k, sum_bias = _as_keys(
        sum_v, from_q, from_k, sum_bias, col_1, col_2, values, own, key_bias, start + BLOCK, n_token,
        q, k, grad, lse, delta, q_t, k_t, g_t, n_token, TIED, BIASED, False, D, STEP,
    )  # fmt: skip
    head, at = (b * n_token * n_head + h) * D, own[:, None] * (n_head * D) + d[None, :]
    if BIASED:
        tl.store(d_bias + bh * n_token + own, sum_bias, mask=inside)
    # the sum over pairs of d_score q_i k_j, taken here by the keys; that of k_i q_j likewise
    part = (bh * tl.num_programs(0) + block) * D + d
    tl.store(d_gate + part, tl.sum(rows_of(k, own, k_t, inside, D) * from_q, 0) * scale)
    if TIED:
        tl.store(d_w_r + part, tl.sum(rows_of(q, own, q_t, inside, D) * from_k, 0) * scale)
        tl.store(half_k + head + at, gates * from_q, mask=inside[:, None])
        tl.store(half_q + head + at, w * from_k, mask=inside[:, None])
    else:
        tl.store(d_k + head + at, (scale * (gates * from_q)).to(d_k.dtype.element_ty), mask=inside[:, None])
    if BLENDED:
        share = tl.load(alpha + h)
        sum_v = (1 - share) * sum_v + share * rows_of(grad, own, g_t, inside, D)
    tl.store(d_v + head + at, sum_v.to(d_v.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _queries_kernel(
    q, k, v, gate, w_r, bias, alpha, grad, lse, delta, half_q, half_k, d_q, d_k,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, n_head, n_token, scale,
    TIED: tl.constexpr, BIASED: tl.constexpr, BLENDED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_q [B, T, H, D] and, where tied, d_k: what half_q and half_k hold, and what tokens get as queries."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest walks first
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // n_head, bh % n_head
    q, k, v, grad = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h, grad + b * g_b + h * g_h
    if BIASED:
        bias += bh * n_token
    start, d = block * BLOCK, tl.arange(0, D)
    own = start + tl.arange(0, BLOCK)
    inside = own < n_token
    gates = tl.load(gate + h * D + d)[None, :]
    d_o = rows_of(grad, own, g_t, inside, D)
    if BLENDED:
        d_o = (d_o * (1 - tl.load(alpha + h))).to(d_o.dtype)
    row_1 = rows_of(q, own, q_t, inside, D)
    row_1 = (row_1 * (gates * (scale * LOG2E))).to(row_1.dtype)
    row_2, w, to_k = row_1, 0.0, 0.0
    if TIED:
        w, to_k = tl.load(w_r + h), tl.zeros([BLOCK, D], tl.float32)
        row_2 = (rows_of(k, own, k_t, inside, D) * (w * scale * LOG2E)).to(row_1.dtype)
    row_lse = tl.load(lse + bh * n_token + own, mask=inside, other=float("inf"))
    row_delta = tl.load(delta + bh * n_token + own, mask=inside, other=0.0)
    to_q = tl.zeros([BLOCK, D], tl.float32)
    to_q, to_k = _as_queries(
        to_q, to_k, row_1, row_2, d_o, own, row_lse, row_delta, 0, start,
        q, k, v, bias, q_t, k_t, v_t, n_token, TIED, BIASED, False, D, STEP,
    )  # fmt: skip
    to_q, to_k = _as_queries(
        to_q, to_k, row_1, row_2, d_o, own, row_lse, row_delta, start, tl.minimum(start + BLOCK, n_token),
        q, k, v, bias, q_t, k_t, v_t, n_token, TIED, BIASED, True, D, STEP,
    )  # fmt: skip
    head, at = (b * n_token * n_head + h) * D, own[:, None] * (n_head * D) + d[None, :]
    to_q = gates * to_q
    if TIED:
        to_q += tl.load(half_q + head + at, mask=inside[:, None], other=0.0)
        to_k = w * to_k + tl.load(half_k + head + at, mask=inside[:, None], other=0.0)
        tl.store(d_k + head + at, (scale * to_k).to(d_k.dtype.element_ty), mask=inside[:, None])
    tl.store(d_q + head + at, (scale * to_q).to(d_q.dtype.element_ty), mask=inside[:, None])


# of each argument by name, for compiling ahead of time; what is not named is an int
POINTERS = {
    **dict.fromkeys(("q", "k", "v", "out", "plain", "grad", "d_q", "d_k", "d_v"), "input"),
    **dict.fromkeys(("gate", "w_r", "bias", "alpha", "lse", "delta", "d_gate", "d_w_r", "d_bias", "d_alpha"), "fp32"),
    **dict.fromkeys(("half_q", "half_k"), "fp32"),
}


def cases() -> Iterator[Case]:
    """What is compiled ahead of time: both directions and one, with all that may be added and with nothing."""
    phases = {"forward": _forward_kernel, "keys": _keys_kernel, "queries": _queries_kernel}
    for dtype, head_dim in itertools.product((torch.bfloat16, torch.float32), HEAD_DIMS):
        for tied, added, (phase, kernel) in itertools.product((False, True), (False, True), phases.items()):
            flags = {"TIED": tied, "BIASED": added, "BLENDED": added}
            absent = {name: None for name, there in {"w_r": tied, "bias": added, "alpha": added}.items() if not there}
            constants, key = {"D": head_dim, **flags, **absent}, (_phase(phase, tied=tied), size_of(head_dim, dtype))
            yield Case("ra_attention", *key, kernel, constants, dtype, "with bias and blend" if added else "")


def _phase(name: str, *, tied: bool) -> str:
    return f"tied_{name}" if tied else name


def _tile(name: str, q: Tensor, w_r: Tensor | None) -> Tile:
    return config("ra_attention", _phase(name, tied=w_r is not None), size_of(q.shape[-1], q.dtype))


def forward(q, k, v, gate, w_r, bias, alpha, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """y and, where it is blended, o, both [B, H, T, D] lying as [B, T, H, D]; the log of each row's sum [B, H, T].

    `w_r`, `bias` and `alpha` may be None.
    """
    batch, n_head, n_token, head_dim = q.shape
    out = q.new_empty(batch, n_token, n_head, head_dim)
    plain = q.new_empty(0) if alpha is None else torch.empty_like(out)
    lse = q.new_empty(batch, n_head, n_token, dtype=torch.float32)
    tile = _tile("forward", q, w_r)
    grid = triton.cdiv(n_token, tile.block), batch * n_head
    _forward_kernel[grid](
        q, k, v, gate, w_r, bias, alpha, out, plain, lse, *strides(q, k, v), n_head, n_token, scale,
        **_flags(w_r, bias, alpha), D=head_dim, **tile.options(),
    )  # fmt: skip
    return out.transpose(1, 2), plain if alpha is None else plain.transpose(1, 2), lse


def backward(
    grad, q, k, v, gate, w_r, bias, alpha, plain, lse, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, gate, w_r, bias, alpha; nothing for what is None. `plain` is o."""
    batch, n_head, n_token, head_dim = q.shape
    flags, sizes = _flags(w_r, bias, alpha), (batch, n_token, n_head, head_dim)
    wide = {"dtype": torch.float32, "device": q.device}
    tile = _tile("keys", q, w_r)
    blocks = triton.cdiv(n_token, tile.block)
    grid, parts = (blocks, batch * n_head), (batch, n_head, blocks)
    delta, d_alpha = torch.empty_like(lse), None if alpha is None else torch.empty(parts, **wide)
    plain = plain.transpose(1, 2).contiguous()  # as it was written
    _delta_kernel[grid](
        grad, plain, v, alpha, delta, d_alpha, *strides(grad, v), n_head, n_token,
        BLENDED=flags["BLENDED"], D=head_dim, BLOCK=tile.block,
    )  # fmt: skip
    d_q, d_k, d_v = (q.new_empty(sizes) for _ in range(3))
    half_q, half_k = (None if w_r is None else torch.empty(sizes, **wide) for _ in range(2))
    d_gate = torch.empty(*parts, head_dim, **wide)
    d_w_r = None if w_r is None else torch.empty_like(d_gate)
    d_bias = None if bias is None else torch.empty_like(lse)
    given, where = (q, k, v, gate, w_r, bias, alpha, grad, lse, delta), strides(q, k, v, grad)
    _keys_kernel[grid](
        *given, d_k, d_v, half_q, half_k, d_gate, d_w_r, d_bias, *where, n_head, n_token, scale,
        **flags, D=head_dim, **tile.options(),
    )  # fmt: skip
    tile = _tile("queries", q, w_r)
    _queries_kernel[triton.cdiv(n_token, tile.block), batch * n_head](
        *given, half_q, half_k, d_q, d_k, *where, n_head, n_token, scale, **flags, D=head_dim, **tile.options()
    )
    return (
        d_q.transpose(1, 2),
        d_k.transpose(1, 2),
        d_v.transpose(1, 2),
        d_gate.sum((0, 2)),
        q.new_empty(0) if d_w_r is None else d_w_r.sum((0, 2, 3)),
        q.new_empty(0) if d_bias is None else d_bias,
        q.new_empty(0) if d_alpha is None else d_alpha.sum((0, 2)),
    )


def _flags(w_r: Tensor | None, bias: Tensor | None, alpha: Tensor | None) -> dict[str, object]:
    given = {"TIED": w_r, "BIASED": bias, "BLENDED": alpha}
    return {flag: x is not None for flag, x in given.items()}
