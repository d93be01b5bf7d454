# pyright: reportCallIssue=false, reportArgumentType=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: gradients are summed over tokens while they are written.

Inductor writes such a gradient in one kernel and reads it again in another for the sum. Here a program owns ROWS tokens
of a few columns (a tile's `block`), iterates over them in steps of `step` tokens, and writes their sum as well as the
gradient. Torch adds the sums of all programs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.tiles import strides
from ratrain.kernels.tuning import Case, config

from .reference import ROWS


@triton.jit
def _gelu_kernel(
    grad, h, d_h, sums, n_row, width,
    TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """d_h = grad * GELU'(h) on ROWS rows and BLOCK columns of [n_row, width], and its sums [programs, width]."""
    first = tl.program_id(0) * ROWS
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = first.to(tl.int64) * width
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, ROWS, STEP):
        rows = start + tl.arange(0, STEP)
        inside = (first + rows < n_row)[:, None] & (cols < width)[None, :]
        at = rows[:, None] * width + cols[None, :]
        x = tl.load(h + offset + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + offset + at, mask=inside, other=0.0).to(tl.float32)
        d = g * _slope(x, TANH)
        tl.store(d_h + offset + at, d.to(d_h.dtype.element_ty), mask=inside)
        total += tl.sum(d, 0)
    tl.store(sums + tl.program_id(0) * width + cols, total, mask=cols < width)


@triton.jit
def _slope(x, TANH: tl.constexpr):
    """The derivative of GELU."""
    if TANH:
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)); not every target has a tanh
        twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        tail = tl.exp(-tl.abs(twice))
        half = tl.where(twice >= 0, 1.0, tail) / (1.0 + tail)
        return half + x * half * (1 - half) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _pack_kernel(
    d_q, d_k, d_v, packed, sums, n_row, n_token,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    C: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """ROWS rows and BLOCK columns of one third of packed [n_row, 3 C], and their sums [programs, 3 C]."""
    third = tl.program_id(2)
    if third == 0:
        _copy(d_q, q_batch, q_head, q_token, packed, sums, n_row, n_token, 0, C, D, ROWS, BLOCK, STEP)
    elif third == 1:
        _copy(d_k, k_batch, k_head, k_token, packed, sums, n_row, n_token, 1, C, D, ROWS, BLOCK, STEP)
    else:
        _copy(d_v, v_batch, v_head, v_token, packed, sums, n_row, n_token, 2, C, D, ROWS, BLOCK, STEP)


@triton.jit
def _copy(
    x, stride_batch, stride_head, stride_token, packed, sums, n_row, n_token, THIRD: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = (cols // D) * stride_head + cols % D
    out = packed + first.to(tl.int64) * (3 * C) + THIRD * C
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, ROWS, STEP):
        rows = start + tl.arange(0, STEP)
        row = first + rows
        inside = (row < n_row)[:, None] & (cols < C)[None, :]
        token = (row // n_token).to(tl.int64) * stride_batch + (row % n_token) * stride_token
        d = tl.load(x + token[:, None] + channel[None, :], mask=inside, other=0.0)
        tl.store(out + rows[:, None] * (3 * C) + cols[None, :], d, mask=inside)
        total += tl.sum(d.to(tl.float32), 0)
    tl.store(sums + tl.program_id(0) * (3 * C) + THIRD * C + cols, total, mask=cols < C)


POINTERS = {**dict.fromkeys(("grad", "h", "d_h", "d_q", "d_k", "d_v", "packed"), "input"), "sums": "fp32"}


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time, at the widths of GPT-2 124M."""
    for tanh in (False, True):
        constants = {"TANH": tanh, "ROWS": ROWS}
        variant = "tanh" if tanh else "exact"
        yield Case("bias_gradient", "gelu", "any", _gelu_kernel, constants, variant=variant, products=False)
    constants = {"C": 768, "D": 64, "ROWS": ROWS}
    yield Case("bias_gradient", "pack", "any", _pack_kernel, constants, products=False)


def gelu_backward(grad: Tensor, h: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Returns, for contiguous grad and h [N, F], the gradient of h in h's dtype, and its sums over ROWS rows, fp32."""
    tile, (n_row, width) = config("bias_gradient", "gelu", "any"), h.shape
    n_block = triton.cdiv(n_row, ROWS)
    d_h, sums = torch.empty_like(h), h.new_empty(n_block, width, dtype=torch.float32)
    _gelu_kernel[(n_block, triton.cdiv(width, tile.block))](
        grad, h, d_h, sums, n_row, width, TANH=tanh, ROWS=ROWS, **tile.constants(), num_warps=tile.warps
    )
    return d_h, sums


def pack(d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for d_q, d_k, d_v [B, H, T, D] with contiguous channels, the packed gradient [B T, 3 H D], and its sums
    over ROWS rows each, fp32."""
    tile = config("bias_gradient", "pack", "any")
    batch, n_head, n_token, head_dim = d_q.shape
    n_row, width = batch * n_token, n_head * head_dim
    n_block = triton.cdiv(n_row, ROWS)
    packed, sums = d_q.new_empty(n_row, 3 * width), d_q.new_empty(n_block, 3 * width, dtype=torch.float32)
    _pack_kernel[(n_block, triton.cdiv(width, tile.block), 3)](
        d_q, d_k, d_v, packed, sums, n_row, n_token, *strides(d_q, d_k, d_v),
        C=width, D=head_dim, ROWS=ROWS, **tile.constants(), num_warps=tile.warps,
    )  # fmt: skip
    return packed, sums
