# pyright: reportCallIssue=false, reportArgumentType=false
# (a launch passes the arguments of the compiled kernel, not the parameters of the Python function)
"""Triton: logits become their losses and, in place, their gradient.

The products use the vendor's matmul, which no kernel here beats. Between them memory is read once and written once;
torch's own softmax, gather and scatter pass over it six times. The gradient reads a row again once its sum is known:
the second read comes from the L2 cache (132 programs with 100 KB each, of 50 MB), whose lines are marked evict-last.
Holding the row in registers instead spills 264 to 400 bytes a thread at V 50304 (Triton 3.6, 3.7).
Sums are in fp32 whatever the logits are in.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ratrain.kernels.tuning import Case, config


@triton.jit
def _rows_kernel(
    logits, targets, losses, stride, n_class, n_column, ignore, z_loss,
    WANTS_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row per program: losses [n]; logits [n, V] become d loss / d logits, 0 from n_class on and in ignored rows."""
    row = tl.program_id(0)
    at, target = logits + row.to(tl.int64) * stride, tl.load(targets + row)
    counted = target != ignore
    picked = tl.load(at + tl.where(counted, target, 0)).to(tl.float32)
    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_column, BLOCK):
        x = _columns(at, start, n_class, n_column, "evict_last", BLOCK)
        new_top = tl.maximum(top, x)
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        total, top = total * tl.exp(top - safe) + tl.exp(x - safe), new_top
    largest = tl.max(top, 0)
    norm = largest + tl.log(tl.sum(total * tl.exp(top - largest), 0))
    tl.store(losses + row, tl.where(counted, norm - picked, 0.0))
    if WANTS_GRAD:
        slope = tl.where(counted, 1.0 + 2 * z_loss * norm, 0.0)
        for start in range(0, n_column, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            x = _columns(at, start, n_class, n_column, "evict_first", BLOCK)
            grad = slope * tl.exp(x - norm) - tl.where(counted & (cols == target), 1.0, 0.0)
            tl.store(at + cols, grad.to(logits.dtype.element_ty), mask=cols < n_column)


@triton.jit
def _columns(at, start, n_class, n_column, policy: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK logits of a row from `start` on, -inf for columns from n_class on.

    Loads are masked by the width of the row, which 16 divides: masked by the classes (50257), each would be of 2 bytes.
    """
    cols = start + tl.arange(0, BLOCK)
    x = tl.load(at + cols, mask=cols < n_column, other=float("-inf"), eviction_policy=policy).to(tl.float32)
    return tl.where(cols < n_class, x, float("-inf"))


POINTERS = {"logits": "input", "targets": "i64", "losses": "fp32"}


def cases() -> Iterator[Case]:
    """Yields the cases to compile ahead of time."""
    yield Case("linear_cross_entropy", "rows", "any", _rows_kernel, {"WANTS_GRAD": True}, products=False)


def losses_and_gradient(
    logits: Tensor, targets: Tensor, losses: Tensor, *, n_class: int, ignore: int, z_loss: float, wants_grad: bool
) -> None:
    """Writes the loss of each row to `losses` [n], fp32; with `wants_grad` the logits [n, V] become the gradient of the
    losses' sum."""
    tile = config("linear_cross_entropy", "rows", "any")
    _rows_kernel[(len(logits),)](
        logits, targets, losses, logits.stride(0), n_class, logits.shape[1], ignore, z_loss,
        WANTS_GRAD=wants_grad, BLOCK=tile.block, num_warps=tile.warps,
    )  # fmt: skip
