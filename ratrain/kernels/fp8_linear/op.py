"""A linear layer with 8-bit factors in two of its three products: the weight's gradient stays in the stream's dtype.

Plain PyTorch around torch's scaled product, so that Inductor fuses the rounding with neighbouring operations. One scale
per tensor, computed at each call: two passes over a tensor, of which the second is fused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import GRADIENTS, VALUES


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [M, K], bias [M] -> [..., M] in x's dtype; K and M divide by 16 on a GPU."""
    y = _Linear.apply(x.flatten(0, -2), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])  # pyright: ignore[reportOptionalMemberAccess]


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns x in 8 bits, and the scale, 0-d fp32, that multiplies it back."""
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp(min=1e-30)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a [N, K] @ b [M, K].T, each in 8 bits with its scale, both contiguous along K -> [N, M]; sums in fp32."""
    (x, scale_x), (w, scale_w) = a, b
    if x.device.type == "cuda":
        return torch._scaled_mm(x, w.T, scale_a=scale_x, scale_b=scale_w, out_dtype=dtype)
    return ((x.float() @ w.float().T) * (scale_x * scale_w)).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        y = product(quantise(x, VALUES), quantise(weight, VALUES), x.dtype)
        return y if bias is None else y + bias.to(y.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        d_x = product(quantise(grad, GRADIENTS), quantise(weight.T.contiguous(), VALUES), x.dtype)
        d_weight = (grad.T @ x).to(weight.dtype)
        return d_x, d_weight, grad.sum(0).to(weight.dtype) if ctx.biased else None
