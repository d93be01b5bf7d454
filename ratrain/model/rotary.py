"""Rotary positions (RoPE): rotates queries and keys by position, so that scores depend on distances only.

Channels 2p and 2p + 1 of a head rotate together, at position t by the angle t 10000^(-2p / D). Pairs are neighbours, as
in the source: the last channels of a head, which some mechanisms treat separately, are whole pairs of lowest frequency.
Source: Su et al. 2021, "RoFormer", arXiv:2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10_000.0


class Rotary(nn.Module):
    """Rotates q and k [B, H, S, D] at positions start..; tables in fp32 for every position of a context."""

    cos: Tensor
    sin: Tensor

    def __init__(self, block_size: int, head_dim: int):
        super().__init__()
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(block_size, head_dim // 2), persistent=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        n_token, n_pair = self.cos.shape
        # float64: at long contexts the error of fp32 angles exceeds the rounding of the tables
        speed = BASE ** (-torch.arange(n_pair, dtype=torch.float64) / n_pair)
        angle = torch.arange(n_token, dtype=torch.float64)[:, None] * speed  # [T, D / 2]
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        cos, sin = (table[start : start + q.shape[2]] for table in (self.cos, self.sin))  # [S, D / 2]
        return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
