"""Gradients of two layers that follow a bias, in plain PyTorch: the definition that the kernels must match.

The gradient of a bias is the sum over all tokens of the gradient of the biased output. Sums are in fp32 (float64 stays)
and taken before the gradient is rounded to its dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROWS = 128  # tokens that one program of a kernel sums


def gelu_backward(grad: Tensor, h: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """grad and h [N, F] -> gradient of h [N, F] through GELU(h), and of its bias [F].

    Exact GELU is h Phi(h), with derivative Phi(h) + h phi(h); the tanh form is that of Hendrycks and Gimpel,
    arXiv:1606.08415, h (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (h + 0.044715 h^3).
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    x = h.to(wide)
    if tanh:
        root = math.sqrt(2 / math.pi)
        t = torch.tanh(root * (x + 0.044715 * x**3))
        slope = (1 + t) / 2 + x / 2 * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)
    else:
        density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        slope = (1 + torch.erf(x / math.sqrt(2))) / 2 + x * density
    d_h = grad.to(wide) * slope
    return d_h.to(h.dtype), d_h.sum(0)


def pack(d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of q, k, v, each [B, H, T, D] -> of the packed projection [B T, 3 H D], and of its bias [3 H D]."""
    batch, n_head, n_token, head_dim = d_q.shape
    packed = torch.stack([x.transpose(1, 2) for x in (d_q, d_k, d_v)], dim=2)  # [B, T, 3, H, D]
    packed = packed.reshape(batch * n_token, 3 * n_head * head_dim)
    return packed, packed.to(torch.promote_types(packed.dtype, torch.float32)).sum(0)
