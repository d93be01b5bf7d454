# pyright: reportArgumentType=false
# (a constexpr takes a bool by default)
"""Device functions shared by the attention kernels. Imports Triton: import it from a `kernel.py` only."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x LOG2E): GPUs have an instruction for exp2


@triton.jit
def rows_of(x, at, stride, inside, D: tl.constexpr, MASKED: tl.constexpr = True):
    """Rows `at` [N] of x, each of D channels; 0 for rows not inside. Without MASKED all rows are inside."""
    where = at[:, None] * stride + tl.arange(0, D)[None, :]  # 32 bits: twice as many would cost registers
    return tl.load(x + where, mask=inside[:, None], other=0.0) if MASKED else tl.load(x + where)


@triton.jit
def entries_of(x, at, inside, MASKED: tl.constexpr = True):
    """Entries `at` [N] of x; 0 for entries not inside. Without MASKED all are inside."""
    return tl.load(x + at, mask=inside, other=0.0) if MASKED else tl.load(x + at)


@triton.jit
def product(a, b, acc=None):
    """a [M, K] times b [K, N], plus acc, in fp32; fp32 inputs in IEEE precision, not TF32."""
    return tl.dot(a, b, acc, input_precision="ieee")


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Returns the strides of batch, head and token; channels must be contiguous."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])
