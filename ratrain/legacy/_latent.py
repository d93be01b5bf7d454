"""Latent attention: keys and values in L channels shared by all heads, and the maps of each head to and from them.

Shape letters: B batch, T tokens, S newest tokens, C channels, H heads, D head_dim, L latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Linear


class TorchLinear(Linear):
    """A linear layer with torch's initialisation, uniform in +-1 / sqrt(fan in), which the old trainers kept."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)


class LatentQKV(Linear):
    """Queries per head, and keys and values in L channels, by one matrix without biases.

    Its rows are initialised from the base's packed projection: the latents take its first rows of keys and of values.
    """

    def __init__(self, spec: ModelSpec, latent: int, *, per_head_q: bool, as_run: bool):
        self.n_query = spec.n_embd if per_head_q else latent
        super().__init__(spec.n_embd, self.n_query + 2 * latent, bias=False)
        self.n_head, self.latent, self.per_head_q, self.as_run = spec.n_head, latent, per_head_q, as_run

    def reset_parameters(self, generator: torch.Generator) -> None:
        width = self.weight.shape[1]
        base = torch.empty(3, width, width).normal_(std=self.std, generator=generator)
        rows = [base[0, : self.n_query], base[1, : self.latent], base[2, : self.latent]]
        self.weight.copy_(torch.cat(rows))
        if self.as_run:  # the reference kept only the rows of the queries
            bound = width**-0.5
            first = self.n_query if self.per_head_q else 0
            nn.init.uniform_(self.weight[first:], -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> q [B, H, T, D] (or [B, 1, T, L], the same for every head), k and v [B, 1, T, L]."""
        q, k, v = F.linear(x, self.weight).split([self.n_query, self.latent, self.latent], dim=-1)
        heads = self.n_head if self.per_head_q else 1
        return q.unflatten(-1, (heads, -1)).transpose(1, 2), k[:, None], v[:, None]


class HeadMaps(nn.Module):
    """Maps queries into the latent space by A [H, D, L], and values out of it by U [H, L, D] or [1, L, D]."""

    decayed = ("a", "u")

    def __init__(self, spec: ModelSpec, latent: int, *, per_head_q: bool, per_head_v: bool, as_run: bool):
        super().__init__()
        self.n_head, self.as_run = spec.n_head, as_run
        self.a = nn.Parameter(torch.empty(spec.n_head, spec.head_dim, latent)) if per_head_q else None
        self.u = nn.Parameter(torch.empty(spec.n_head if per_head_v else 1, latent, spec.head_dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialises uniformly with Glorot's bound per head's matrix; as run, per whole tensor, times a gain."""
        for weight, gain in ((self.a, 2**-0.5), (self.u, self.u.shape[1] ** -0.5)):
            if weight is None:
                continue
            heads, rows, columns = weight.shape
            bound = (6 / (rows + columns)) ** 0.5
            if self.as_run:
                fans = rows * columns + heads * columns if heads > 1 else rows + columns
                bound = gain * (6 / fans) ** 0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def queries(self, q: Tensor) -> Tensor:
        """q of `LatentQKV` -> [B, H, T, L]."""
        return q.expand(-1, self.n_head, -1, -1) if self.a is None else q @ self.a.to(q.dtype)

    def values(self, v: Tensor) -> Tensor:
        """v [B, 1, T, L] -> [B, H, T, D], or [B, 1, T, D] if all heads share the values."""
        return v @ self.u.to(v.dtype)

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * sum(weight.numel() for weight in (self.a, self.u) if weight is not None)
