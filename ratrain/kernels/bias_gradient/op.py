"""Two layers that also compute the gradient of the preceding bias: it is summed while their input gradient is written.

The preceding layer adds `bias.detach()`. Its backward pass then sums no bias gradient, which would read the gradient
from memory a second time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ratrain.kernels.placement import on_kernels

from . import reference

ROWS = reference.ROWS


def fuses(x: Tensor) -> bool:
    """Whether gradients are enabled and the kernels run on x's device. On a CPU the layers stay torch's own."""
    return torch.is_grad_enabled() and on_kernels(x)


def biased_gelu(h: Tensor, bias: Tensor, *, tanh: bool = False) -> Tensor:
    """GELU of h [..., F], exact or in its tanh form, with h = x + bias.detach(): bias [F] gets its gradient here."""
    return _GELU.apply(h, bias, tanh)  # pyright: ignore[reportReturnType]


def split_heads(packed: Tensor, bias: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """packed [B, T, 3 C] -> q, k, v, each [B, H, T, D], with packed = x + bias.detach(): bias [3 C] gets its gradient
    here."""
    return _Split.apply(packed, bias, n_head)  # pyright: ignore[reportReturnType]


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bias: Tensor, tanh: bool) -> Tensor:
        ctx.save_for_backward(h)
        ctx.tanh, ctx.dtype = tanh, bias.dtype
        return F.gelu(h, approximate="tanh" if tanh else "none")

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (h,) = ctx.saved_tensors
        flat = h.flatten(0, -2)
        d_h, sums = _gelu_backward(grad.to(h.dtype).reshape(flat.shape), flat, ctx.tanh)
        return d_h.view(h.shape), sums.sum(0).to(ctx.dtype), None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shape, ctx.dtype = packed.shape, bias.dtype
        q, k, v = packed.view(*packed.shape[:2], 3, n_head, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        packed, sums = _pack(d_q, d_k, d_v)
        return packed.view(ctx.shape), sums.sum(0).to(ctx.dtype), None


# the kernels accept any layout of their inputs: Inductor must not force the layouts seen while the graph was traced
@torch.library.custom_op("ratrain::gelu_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _gelu_backward(grad: Tensor, h: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """grad, h [N, F] -> gradient of h [N, F], and sums of it over blocks of rows [blocks, F], fp32 (float64 as h)."""
    if on_kernels(h):
        from . import kernel  # imports Triton, so only if the kernel runs

        return kernel.gelu_backward(grad.contiguous(), h.contiguous(), tanh)
    d_h, total = reference.gelu_backward(grad, h, tanh)
    return d_h, total[None]


@_gelu_backward.register_fake
def _(grad, h, tanh):
    return h.new_empty(h.shape), _sums(h, *h.shape)


@torch.library.custom_op("ratrain::pack_gradient", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _pack(d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, Tensor]:
    """d_q, d_k, d_v [B, H, T, D] -> packed [B T, 3 H D], and sums of it over blocks of rows, as above."""
    if on_kernels(d_q):
        from . import kernel

        return kernel.pack(*(x if x.stride(-1) == 1 else x.contiguous() for x in (d_q, d_k, d_v)))
    packed, total = reference.pack(d_q, d_k, d_v)
    return packed, total[None]


@_pack.register_fake
def _(d_q, d_k, d_v):
    batch, n_head, n_token, head_dim = d_q.shape
    packed = d_q.new_empty(batch * n_token, 3 * n_head * head_dim)
    return packed, _sums(packed, *packed.shape)


def _sums(x: Tensor, n_row: int, width: int) -> Tensor:
    """Returns an empty array for sums of x over blocks of its rows; the definition has one block."""
    n_block = -(-n_row // ROWS) if on_kernels(x) else 1
    return x.new_empty(n_block, width, dtype=torch.promote_types(x.dtype, torch.float32))
