"""Unified RA: the last `rank` score channels of every head have their own gate.

A gated relabelling of standard attention: absorbing the gates into the query rows recovers the base model, so the
function class is GPT-2's, and only the optimisation differs. (On a base with QK-norm the gates follow the norm: a gain
that no weight can absorb.) For true reciprocity see `tied_ra`.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.model.gpt2 import Attention
from ratrain.model.mechanism import Mechanism, score_share
from ratrain.registry import Patch, register


@register("unified_ra")
class UnifiedRA(Patch):
    """Gates w_std on the first head_dim - rank score channels and w_rec on the last rank, per head or per layer.

    Initial gates: `series` 0.9 and 0.1, as the V-series has them; `neutral` 1 and 1, which is the base model;
    `geometric` (head_dim - rank) / head_dim and rank / head_dim.
    """

    target: str = "blocks.*.attn.score"  # a seam: the rest of the attention stays as it is
    rank: PositiveInt = 4
    gates: Literal["head", "layer"] = "head"
    init: Literal["series", "neutral", "geometric"] = "series"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if self.rank >= spec.head_dim:
            raise ValueError(f"rank must be below head_dim = {spec.head_dim}, got {self.rank}")
        share = self.rank / spec.head_dim
        init = {"series": (0.9, 0.1), "neutral": (1.0, 1.0), "geometric": (1 - share, share)}[self.init]
        return ScoreGate(spec.n_head, spec.head_dim, rank=self.rank, per_head=self.gates == "head", init=init)

    def repack(self, model: nn.Module, site: str) -> bool:
        """Swaps the last `rank` query and key rows of each head, which then score k_i . q_j until training unties
        them. The gates stay separate; the reference also multiplied them into the rows, applying them twice."""
        qkv = cast("Attention", model.get_submodule(site.rpartition(".")[0])).qkv
        for rows in (qkv.weight, *([] if qkv.bias is None else [qkv.bias])):
            q, k, _ = rows.view(3, qkv.n_head, -1, *rows.shape[1:])  # [H, D, C], or [H, D] of the bias
            low = q[:, -self.rank :].clone()
            q[:, -self.rank :] = k[:, -self.rank :]
            k[:, -self.rank :] = low
        return True


class ScoreGate(Mechanism):
    """A gate per score channel: w_std on the first head_dim - rank of every head, w_rec on the rest."""

    is_rec: Tensor

    def __init__(self, n_head: int, head_dim: int, *, rank: int, per_head: bool, init: tuple[float, float]):
        super().__init__()
        self.n_head, self.rank, self.init = n_head, rank, init
        self.w_std = nn.Parameter(torch.empty(n_head if per_head else 1))  # 1-D: never decayed
        self.w_rec = nn.Parameter(torch.empty(n_head if per_head else 1))
        self.register_buffer("is_rec", torch.empty(head_dim, dtype=torch.bool), persistent=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.w_std, self.init[0])
        nn.init.constant_(self.w_rec, self.init[1])
        self.is_rec.copy_(torch.arange(self.is_rec.numel()) >= self.is_rec.numel() - self.rank)
        super().reset_parameters(generator)

    def forward(self) -> Tensor:  # [H, D], scales rows of the query projection, not tokens
        gate = torch.where(self.is_rec, self.w_rec[:, None], self.w_std[:, None]).expand(self.n_head, -1)
        return 1 + self.s * (gate - 1)  # s = 0 is the base, exactly

    def probes(self) -> dict[str, Tensor]:
        return {"w_std": self.w_std, "w_rec": self.w_rec} | {
            "effective w_std": 1 + self.s * (self.w_std - 1),
            "effective w_rec": 1 + self.s * (self.w_rec - 1),
        }

    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Returns the variance share of the reciprocal scores, of the last `rank` channels; q includes its gates."""
        return {"share of score variance": score_share((q[..., -self.rank :], k[..., -self.rank :]), (q, k))}
