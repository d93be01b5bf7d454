"""Norms over the channels of the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec


class Norm(nn.Module):
    """Layer norm; statistics, weight and bias in fp32 for any dtype of the stream."""

    def __init__(self, n_embd: int, *, bias: bool, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(n_embd))
        self.bias = nn.Parameter(torch.empty(n_embd)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm: x over its root mean square, times a weight; in fp32 for any dtype of the stream (arXiv:1910.07467)."""

    def __init__(self, n_embd: int, *, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(n_embd))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


def norm_of(spec: ModelSpec) -> Norm | RMSNorm:
    """Builds the base's norm over the channels of the stream."""
    if spec.norm == "rms":
        return RMSNorm(spec.n_embd, eps=spec.norm_eps)
    return Norm(spec.n_embd, bias=spec.bias, eps=spec.norm_eps)
