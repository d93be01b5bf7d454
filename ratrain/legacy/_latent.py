"""Latent attention: keys and values in L channels that all heads share, and what each head makes of them.

Shape letters: B batch, T tokens, S newest tokens, C channels, H heads, D head_dim, L latent channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Linear


class TorchLinear(Linear):
    """Drawn as torch draws its linear layers, uniform in +-1 / sqrt(fan in): the old trainers left it at that."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)


class LatentQKV(Linear):
    """Queries per head, and keys and values in L channels, by one matrix without biases.

    Its rows begin as those of the base's packed projection, of which the latents take the first of keys and values.
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
        if self.as_run:  # only the queries were taken over
            bound = width**-0.5
            first = self.n_query if self.per_head_q else 0
            nn.init.uniform_(self.weight[first:], -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> q [B, H, T, D] (or [B, 1, T, L], the same for every head), k and v [B, 1, T, L]."""
        q, k, v = F.linear(x, self.weight).split([self.n_query, self.latent, self.latent], dim=-1)
        heads = self.n_head if self.per_head_q else 1
        return q.unflatten(-1, (heads, -1)).transpose(1, 2), k[:, None], v[:, None]


class HeadMaps(nn.Module):
    """What takes queries into the latent space, A [H, D, L], and values out of it, U [H, L, D] or [1, L, D]."""

    decayed = ("a", "u")

    def __init__(self, spec: ModelSpec, latent: int, *, per_head_q: bool, per_head_v: bool, as_run: bool):
        super().__init__()
        self.n_head, self.as_run = spec.n_head, as_run
        self.a = nn.Parameter(torch.empty(spec.n_head, spec.head_dim, latent)) if per_head_q else None
        self.u = nn.Parameter(torch.empty(spec.n_head if per_head_v else 1, latent, spec.head_dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Glorot's bound for each head's matrix; as run, for the tensor as a whole, times a gain of its own."""
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
        """v [B, 1, T, L] -> [B, H, T, D], or [B, 1, T, D] where all heads have the same."""
        return v @ self.u.to(v.dtype)

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * sum(weight.numel() for weight in (self.a, self.u) if weight is not None)
