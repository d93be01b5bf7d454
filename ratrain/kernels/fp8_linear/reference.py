"""Products of 8-bit numbers in fp32 arithmetic: the definition that a GPU's scaled products must match.

Each tensor is divided by its largest element over the largest number of the format, and rounded: e4m3 (3 bits of
mantissa, up to 448) for values and weights, e5m2 (2 bits, up to 57344) for gradients (Micikevicius et al. 2022,
arXiv:2209.05433). Rounding leaves a relative error of at most 2^-4 and 2^-3 in an element; the error of a product of K
terms is about 2^-4 / sqrt(3) of the root of the sum of its squared terms.
"""

from __future__ import annotations

import torch
from torch import Tensor

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to its scaled 8-bit form and converted back to fp32 (float64 stays)."""
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().to(torch.float32) / largest).clamp(min=1e-30)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(torch.float32) / scale).clamp(-largest, largest).to(dtype).to(wide) * scale.to(wide)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, K], weight [M, K] -> [N, M], fp32."""
    y = rounded(x, VALUES) @ rounded(weight, VALUES).T
    return y if bias is None else y + bias.to(y.dtype)


def backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias: that of x from 8-bit factors, the others from unrounded factors."""
    wide = torch.promote_types(x.dtype, torch.float32)
    d_x = rounded(grad, GRADIENTS) @ rounded(weight, VALUES)
    return d_x, grad.to(wide).T @ x.to(wide), grad.to(wide).sum(0)
