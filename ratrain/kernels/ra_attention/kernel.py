# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: causal flash attention whose scores have a gate per channel and, if tied, the other direction as well.

Forward: a program owns a block of queries of one head and iterates over the keys up to them. If tied, `gate q_i . k_j`
and `w_r k_i . q_j` are summed in one accumulator, so that no operand is twice as wide. Backward: two kernels. In the
first a program owns a block of keys and iterates over all later queries: probabilities are recomputed from the saved
log of each row's sum, to base 2 (FlashAttention-2, Dao 2023, arXiv:2307.08691), d_v is accumulated, and the gradients
of the scores are stored in q's dtype. In the second a program computes d_q and d_k of a block of tokens, as queries and
as keys, by products alone. No atomics: equal inputs give equal bits.

Why gradients of scores are stored, estimated for a layer of B 16, H 12, T 1024, D 64 in bf16 on an H100 that multiplies
at 250 TFLOP/s and copies at 2.6 TB/s (nothing is measured yet). A causal product is 12.9 GFLOP, 52 us.

  two kernels that both recompute the scores   11 products if tied (7 if not), 201 MB of fp32 sums      645 us (361)
  one kernel over keys, partial d_q, d_k       8 products (5), 453 MB of fp32 partials of each          761 us (432)
  this                                         8 products (5), 226 MB stored and read                   413 us (258)

The first passes half of d_q and d_k on in fp32. The second must keep a part of each per block of keys, as nothing may
add atomically; adding them up in turn, behind a semaphore, moves as many bytes through L2 and can stall. The third
stores while it multiplies, and its second kernel, which has no exponentials, reads each tile twice, once from L2. If no
byte were hidden it would take 587 us (432). Scratch: T x T of as many heads as `_ROOM` holds, at least one.

A tensor [B, H, T, D] is passed with three strides and contiguous channels: the packed projection is read in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.placement import HEAD_DIMS
from ratrain.kernels.tiles import LOG2E, entries_of, product, rows_of, strides
from ratrain.kernels.tuning import Case, Tile, config, size_of

_ROOM = 1 << 29  # bytes that the scores' gradients may take, unless a single head's are more
_ROWS = 32  # of a program without matrix products


@triton.jit
def _seen(
    acc, top, total, row_1, row_2, rows, start, stop,
    k, q, v, bias, stride_k, stride_q, stride_v, n_token,
    TIED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Adds the keys from start to stop to an online softmax: acc [M, D], top and total [M].

    row_1 are the queries, row_2 those of the other direction. Not MASKED: all keys are real, and before every query.
    """
    for at in range(start, stop, STEP):
        cols = at + tl.arange(0, STEP)
        inside = cols < n_token
        scores = product(row_1, tl.trans(rows_of(k, cols, stride_k, inside, D, MASKED)))
        if TIED:
            scores = product(row_2, tl.trans(rows_of(q, cols, stride_q, inside, D, MASKED)), scores)
        if BIASED:
            scores += entries_of(bias, cols, inside, MASKED)[None, :] * LOG2E
        if MASKED:
            scores = tl.where(cols[None, :] <= rows[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        probs, fade = tl.exp2(scores - new_top[:, None]), tl.exp2(top - new_top)
        total, top = total * fade + tl.sum(probs, 1), new_top
        values = rows_of(v, cols, stride_v, inside, D, MASKED)
        acc = product(probs.to(values.dtype), values, acc * fade[:, None])
    return acc, top, total


@triton.jit
def _forward_kernel(
    q, k, v, gate, w_r, bias, alpha, out, plain, lse,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, n_head, n_token, scale,
    TIED: tl.constexpr, BIASED: tl.constexpr, BLENDED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """out, plain [B, T, H, D]: y and, if it is blended, o; lse [B, H, T]."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest loops first
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
    grad, plain, v, alpha, lse, sums, delta, d_alpha,
    g_b, g_h, g_t, v_b, v_h, v_t, n_head, n_token, width,
    BLENDED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums and delta [B, H, width], padded so that later kernels need no row mask: sums is lse, infinite beyond the
    last token, and delta the sum of d_o o of each row, subtracted in the softmax gradient. d_alpha [B, H, blocks]."""
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
    row_lse = tl.load(lse + bh * n_token + rows, mask=inside, other=float("inf"))
    tl.store(sums + bh * width + rows, row_lse, mask=rows < width)
    tl.store(delta + bh * width + rows, dot, mask=rows < width)


@triton.jit
def _as_keys(
    d_v, d_bias, col_1, col_2, values, cols, key_bias, start, stop, edge, skip,
    q, k, grad, sums, delta, d_scores, stride_q, stride_k, stride_g, n_token, width,
    TIED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of a block of keys from the queries start to stop; MASKED: skips `skip` queries at `edge`.

    Stores d_scores [keys, queries], without scale. d_v and values are attention's, without the blend's alpha v.
    """
    for step in range(start, stop, STEP):
        at = step
        if MASKED:
            at = tl.multiple_of(step + tl.where(step >= edge, skip, 0), STEP)
        rows = at + tl.arange(0, STEP)
        inside = rows < n_token
        scores = product(col_1, tl.trans(rows_of(q, rows, stride_q, inside, D, MASKED)))
        if TIED:
            scores = product(col_2, tl.trans(rows_of(k, rows, stride_k, inside, D, MASKED)), scores)
        if BIASED:
            scores += key_bias[:, None]
        probs = tl.exp2(scores - tl.load(sums + rows)[None, :])
        if MASKED:
            probs = tl.where(cols[:, None] <= rows[None, :], probs, 0.0)
        d_o = rows_of(grad, rows, stride_g, inside, D, MASKED)
        d_v = product(probs.to(d_o.dtype), d_o, d_v)
        found = probs * (product(values, tl.trans(d_o)) - tl.load(delta + rows)[None, :])
        if BIASED:
            d_bias += tl.sum(found, 1)
        tl.store(d_scores + tl.arange(0, BLOCK)[:, None] * width + rows[None, :], found.to(d_o.dtype))
    return d_v, d_bias


@triton.jit(do_not_specialize=["n_done"])
def _keys_kernel(
    q, k, v, gate, w_r, bias, alpha, grad, sums, delta, d_scores, d_v, d_bias,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, n_head, n_token, n_done, n_owned, width, scale,
    TIED: tl.constexpr, BIASED: tl.constexpr, BLENDED: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_v [B, T, H, D]; d_bias [B, H, T]; d_scores [heads from n_done on, width keys, width queries], from the block of
    n_owned queries on that holds the first key, zeros included."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    bh = head + n_done
    b, h = bh // n_head, bh % n_head
    q, k, v, grad = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h, grad + b * g_b + h * g_h
    start, d = block * BLOCK, tl.arange(0, D)
    sums, delta, d_scores = sums + bh * width, delta + bh * width, d_scores + (head * width + start) * width
    own = start + tl.arange(0, BLOCK)
    inside = own < n_token
    k_own, values = rows_of(k, own, k_t, inside, D), rows_of(v, own, v_t, inside, D)
    # (gate q) . k is q . (gate k): gated once, on the side that stays in place
    col_1 = (k_own * (tl.load(gate + h * D + d) * (scale * LOG2E))[None, :]).to(k_own.dtype)
    col_2 = col_1
    if TIED:
        col_2 = (rows_of(q, own, q_t, inside, D) * (tl.load(w_r + h) * scale * LOG2E)).to(k_own.dtype)
    if BLENDED:  # attention's part of each gradient, on the side that stays in place
        values = (values * (1 - tl.load(alpha + h))).to(values.dtype)
    key_bias = tl.zeros([BLOCK], tl.float32)
    if BIASED:
        key_bias = tl.load(bias + bh * n_token + own, mask=inside, other=0.0) * LOG2E
    sum_v, sum_bias = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK], tl.float32)
    # masks only on the diagonal and past the last whole step; with neither, queries from `edge` to `whole`
    edge, whole = start + BLOCK, n_token // STEP * STEP
    skip = tl.maximum(whole - edge, 0)
    sum_v, sum_bias = _as_keys(
        sum_v, sum_bias, col_1, col_2, values, own, key_bias, start // n_owned * n_owned, width - skip, edge, skip,
        q, k, grad, sums, delta, d_scores, q_t, k_t, g_t, n_token, width, TIED, BIASED, True, D, BLOCK, STEP,
    )  # fmt: skip
    sum_v, sum_bias = _as_keys(
        sum_v, sum_bias, col_1, col_2, values, own, key_bias, edge, whole, edge, 0,
        q, k, grad, sums, delta, d_scores, q_t, k_t, g_t, n_token, width, TIED, BIASED, False, D, BLOCK, STEP,
    )  # fmt: skip
    if BIASED:
        tl.store(d_bias + bh * n_token + own, sum_bias, mask=inside)
    if BLENDED:
        share = tl.load(alpha + h)
        sum_v = (1 - share) * sum_v + share * rows_of(grad, own, g_t, inside, D)
    at = (b * n_token * n_head + h) * D + own[:, None] * (n_head * D) + d[None, :]
    tl.store(d_v + at, sum_v.to(d_v.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["n_done"])
def _tokens_kernel(
    q, k, gate, w_r, d_scores, d_q, d_k, d_gate, d_w_r,
    q_b, q_h, q_t, k_b, k_h, k_t, n_head, n_token, n_done, width, scale,
    TIED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_q, d_k [B, T, H, D]; d_gate, d_w_r [B, H, blocks, D], to be summed. A block of tokens in both of its roles."""
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    bh = head + n_done
    b, h = bh // n_head, bh % n_head
    q, k, d_scores = q + b * q_b + h * q_h, k + b * k_b + h * k_h, d_scores + head * width * width
    start, d = block * BLOCK, tl.arange(0, D)
    own = start + tl.arange(0, BLOCK)
    inside = own < n_token
    as_q, as_k = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    also_q, also_k = as_q, as_q  # of the other direction, in which q is a key and k a query
    for at in range(0, start + BLOCK, STEP):  # the keys that these queries see
        cols = at + tl.arange(0, STEP)
        real = cols < n_token
        pairs = tl.load(d_scores + at * width.to(tl.int64) + tl.arange(0, STEP)[:, None] * width + own[None, :])
        pairs = tl.trans(pairs)
        as_q = product(pairs, rows_of(k, cols, k_t, real, D), as_q)
        if TIED:
            also_k = product(pairs, rows_of(q, cols, q_t, real, D), also_k)
    d_scores += start * width.to(tl.int64)
    for at in range(start, width, STEP):  # the queries that see these keys
        rows = at + tl.arange(0, STEP)
        real = rows < n_token
        pairs = tl.load(d_scores + tl.arange(0, BLOCK)[:, None] * width + rows[None, :])
        as_k = product(pairs, rows_of(q, rows, q_t, real, D), as_k)
        if TIED:
            also_q = product(pairs, rows_of(k, rows, k_t, real, D), also_q)
    # the sum over pairs of d_score q_i k_j, taken here by the queries; that of k_i q_j likewise
    part = (bh * tl.num_programs(0) + block) * D + d
    tl.store(d_gate + part, tl.sum(rows_of(q, own, q_t, inside, D) * as_q, 0) * scale)
    gates = tl.load(gate + h * D + d)[None, :]
    as_q, as_k = gates * as_q, gates * as_k
    if TIED:
        tl.store(d_w_r + part, tl.sum(rows_of(k, own, k_t, inside, D) * also_k, 0) * scale)
        w = tl.load(w_r + h)
        as_q, as_k = as_q + w * also_q, as_k + w * also_k
    at = (b * n_token * n_head + h) * D + own[:, None] * (n_head * D) + d[None, :]
    tl.store(d_q + at, (scale * as_q).to(d_q.dtype.element_ty), mask=inside[:, None])
    tl.store(d_k + at, (scale * as_k).to(d_k.dtype.element_ty), mask=inside[:, None])


# types of the arguments by name, for compiling ahead of time; an argument not named is an int
POINTERS = {
    **dict.fromkeys(("q", "k", "v", "out", "plain", "grad", "d_scores", "d_q", "d_k", "d_v"), "input"),
    **dict.fromkeys(("gate", "w_r", "bias", "alpha", "lse", "sums", "delta"), "fp32"),
    **dict.fromkeys(("d_gate", "d_w_r", "d_bias", "d_alpha"), "fp32"),
}


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time: tied and not, each with and without bias and blend."""
    phases = {"forward": _forward_kernel, "keys": _keys_kernel, "tokens": _tokens_kernel}
    for dtype, head_dim in itertools.product((torch.bfloat16, torch.float32), HEAD_DIMS):
        for tied, added, (phase, kernel) in itertools.product((False, True), (False, True), phases.items()):
            if added and phase == "tokens":  # takes neither bias nor blend
                continue
            flags = {"TIED": tied, "BIASED": added, "BLENDED": added}
            absent = {name: None for name, there in {"w_r": tied, "bias": added, "alpha": added}.items() if not there}
            constants, key = {"D": head_dim, **flags, **absent}, (_phase(phase, tied=tied), size_of(head_dim, dtype))
            constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
            yield Case("ra_attention", *key, kernel, constants, dtype, "with bias and blend" if added else "")


def _phase(name: str, *, tied: bool) -> str:
    return f"tied_{name}" if tied else name


def _tile(name: str, q: Tensor, w_r: Tensor | None) -> Tile:
    return config("ra_attention", _phase(name, tied=w_r is not None), size_of(q.shape[-1], q.dtype))


def forward(q, k, v, gate, w_r, bias, alpha, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """y and, if it is blended, o, both [B, H, T, D] stored as [B, T, H, D]; the log of each row's sum [B, H, T].

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
    """Gradients of q, k, v, gate, w_r, bias, alpha; empty for an input of None. `plain` is o."""
    batch, n_head, n_token, head_dim = q.shape
    flags = _flags(w_r, bias, alpha)
    keys, tokens = _tile("keys", q, w_r), _tile("tokens", q, w_r)
    block = max(keys.block, tokens.block)
    width = triton.cdiv(n_token, block) * block

    def wide(*sizes: int) -> Tensor:
        return q.new_empty(batch, n_head, *sizes, dtype=torch.float32)

    sums, delta = wide(width), wide(width)
    d_alpha = None if alpha is None else wide(triton.cdiv(width, _ROWS))
    plain = plain.transpose(1, 2).contiguous()  # as it was written
    _delta_kernel[triton.cdiv(width, _ROWS), batch * n_head](
        grad, plain, v, alpha, lse, sums, delta, d_alpha, *strides(grad, v), n_head, n_token, width,
        BLENDED=flags["BLENDED"], D=head_dim, BLOCK=_ROWS,
    )  # fmt: skip
    d_q, d_k, d_v = (q.new_empty(batch, n_token, n_head, head_dim) for _ in range(3))
    d_gate = wide(triton.cdiv(n_token, tokens.block), head_dim)
    d_w_r = None if w_r is None else torch.empty_like(d_gate)
    d_bias = None if bias is None else torch.empty_like(lse)
    heads = min(batch * n_head, max(1, _ROOM // (width * width * q.element_size())))
    d_scores = q.new_empty(heads, width, width)
    for done in range(0, batch * n_head, heads):
        some = min(heads, batch * n_head - done)
        _keys_kernel[width // keys.block, some](
            q, k, v, gate, w_r, bias, alpha, grad, sums, delta, d_scores, d_v, d_bias, *strides(q, k, v, grad),
            n_head, n_token, done, tokens.block, width, scale, **flags, D=head_dim, **keys.options(),
        )  # fmt: skip
        _tokens_kernel[triton.cdiv(n_token, tokens.block), some](
            q, k, gate, w_r, d_scores, d_q, d_k, d_gate, d_w_r, *strides(q, k),
            n_head, n_token, done, width, scale, TIED=flags["TIED"], D=head_dim, **tokens.options(),
        )  # fmt: skip
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
