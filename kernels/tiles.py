"""What the attention kernels share. It imports Triton: only a `kernel.py` imports it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x LOG2E), and exp2 is what GPUs have


@triton.jit
def rows_of(x, at, stride, inside, D: tl.constexpr):
    """Rows `at` [N] of x, each of D channels; 0 where not inside."""
    where = at[:, None].to(tl.int64) * stride + tl.arange(0, D)[None, :]
    return tl.load(x + where, mask=inside[:, None], other=0.0)


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of batch, head and token; channels must lie side by side."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def precision(dtype: torch.dtype) -> str:
    """Of fp32 products, which are to be exact; other dtypes do not look at it."""
    return "ieee" if dtype == torch.float32 else "tf32"
