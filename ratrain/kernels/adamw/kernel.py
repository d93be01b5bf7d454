# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: AdamW over many tensors in one launch, which reads bf16 gradients and writes the bf16 copies as well.

Per parameter 28 bytes are read or written: gradient 2, fp32 master 8, both moments 16, copy 2. torch's fused AdamW
takes fp32 gradients and writes no copies: casts and copies around it move another 16. A table on the device holds the
address of every tensor; each program owns a block of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.tuning import Case, config

COLUMNS = 6  # of the table: parameter, gradient, exp_avg, exp_avg_sq, copy, number of elements


@triton.jit
def _adamw_kernel(
    table, owner, place, corrections, lr, grad_scale, found_inf, beta1, rest1, beta2, rest2, eps, weight_decay,
    NARROW: tl.constexpr, COPIED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program i updates block place[i] of tensor owner[i], or nothing if found_inf is set. NARROW: bf16 gradients."""
    if tl.load(found_inf) == 0.0:
        tensor = tl.load(owner + tl.program_id(0))
        row, rate = table + tensor * WIDTH, tl.load(lr)
        n_element, start = tl.load(row + 5), tl.load(place + tl.program_id(0)).to(tl.int64) * BLOCK
        rate_1, root_2 = rate / tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
        decay, scale = 1.0 - rate * weight_decay, tl.load(grad_scale)
        if start + BLOCK <= n_element:
            _update(
                row, start, n_element, beta1, rest1, beta2, rest2, eps, rate_1, root_2, decay, scale,
                NARROW, COPIED, False, BLOCK,
            )  # fmt: skip
        else:
            _update(
                row, start, n_element, beta1, rest1, beta2, rest2, eps, rate_1, root_2, decay, scale,
                NARROW, COPIED, True, BLOCK,
            )  # fmt: skip


@triton.jit
def _update(
    row, start, n_element, beta1, rest1, beta2, rest2, eps, rate_1, root_2, decay, scale,
    NARROW: tl.constexpr, COPIED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = start + tl.arange(0, BLOCK)
    inside = at < n_element if MASKED else None
    parameter, exp_avg, exp_avg_sq = (
        _address(row, tl.float32),
        _address(row + 2, tl.float32),
        _address(row + 3, tl.float32),
    )
    gradient = _address(row + 1, tl.bfloat16 if NARROW else tl.float32)
    g = tl.load(gradient + at, mask=inside).to(tl.float32) / scale
    m = beta1 * tl.load(exp_avg + at, mask=inside) + rest1 * g
    v = beta2 * tl.load(exp_avg_sq + at, mask=inside) + rest2 * g * g
    p = tl.load(parameter + at, mask=inside) * decay - rate_1 * m / (tl.sqrt(v) / root_2 + eps)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(parameter + at, p, mask=inside)
    if COPIED:
        tl.store(_address(row + 4, tl.bfloat16) + at, p.to(tl.bfloat16), mask=inside)


@triton.jit
def _address(entry, dtype: tl.constexpr):
    """The pointer stored in the table at `entry`; torch aligns its tensors to 16 bytes at least."""
    return tl.multiple_of(tl.load(entry).to(tl.pointer_type(dtype)), 16)


POINTERS = {
    "table": "i64", "owner": "i32", "place": "i32",
    **dict.fromkeys(("corrections", "lr", "grad_scale", "found_inf"), "fp32"),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time: bf16 gradients with copies, and fp32 without."""
    for narrow in (True, False):
        constants = {"NARROW": narrow, "COPIED": narrow, "WIDTH": COLUMNS}
        variant = "bf16 gradients" if narrow else "fp32 gradients"
        yield Case("adamw", "update", "any", _adamw_kernel, constants, variant=variant, products=False)


def block() -> int:
    """Number of elements that one program updates."""
    return config("adamw", "update", "any").block


def update(
    table: Tensor, owner: Tensor, place: Tensor, corrections: Tensor, *, narrow: bool, copied: bool, lr: Tensor,
    grad_scale: Tensor, found_inf: Tensor, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """Updates all tensors of `table` [n, COLUMNS]; owner and place [programs] are the tensor and block of each program.

    corrections [n, 2], fp32: 1 - beta1^t and sqrt(1 - beta2^t) of each tensor's step number t.
    """
    tile = config("adamw", "update", "any")
    # 1 - beta in double: fp32 would lose 5e-5 of 1 - 0.999
    rates = [number for beta in betas for number in (beta, 1 - beta)]
    _adamw_kernel[(len(owner),)](
        table, owner, place, corrections, lr, grad_scale, found_inf, *rates, eps, weight_decay,
        NARROW=narrow, COPIED=copied, WIDTH=COLUMNS, BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip
