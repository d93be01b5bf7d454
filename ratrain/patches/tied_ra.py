"""Tied RA: true reciprocity, with the same q and k in both roles.

    score_ij = (w_s q_i . k_j + w_r k_i . q_j) / sqrt(D),  j <= i

With A = W_q^T W_k a head scores by w_s A + w_r A^T, of rank up to 2D: outside GPT-2's function class. One attention
call computes it: queries [w_s q, w_r k] against keys [k, q], twice as wide, and values padded to that width, since SDPA
with unequal widths uses an unfused path. So the core costs twice the base's FLOPs, and decoding caches q beside k and
v. For short contexts the scores are materialised instead: k_i . q_j is q_j . k_i, so that one product of the base's
width and its transpose contain both directions. On a GPU one kernel computes both products tile by tile.

`rank = R` keeps the base's width, and so its attention call and cache. The last R channels of the scores become

    w_r (U^T k_i) . (U^T q_j),  U [D, R] learned per head, N(0, 1/D)

for 4 C R FLOPs per token. The score's rank is then at most D, as in any head of GPT-2: the same function class, tied
only while U selects channels that also score in the other direction.
Source: section "genuine reciprocal scores" of the reference's prototypes (`ra_sdpa_folded`, `ra_same_flop`), which drew
the fold anew at every call. Here gates scale one side instead of both sides by their roots, so that any sign is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.kernels.placement import runs_kernel
from ratrain.kernels.ra_attention import ra_attention
from ratrain.model.gpt2 import Core
from ratrain.model.mechanism import score_share
from ratrain.model.scores import causal, scores_of
from ratrain.registry import Patch, register

_SHORT = 256  # tokens up to which T x T scores are cheaper than twice the width


@register("tied_ra")
class TiedRA(Patch):
    """Reciprocal scores with gates w_s and w_r per head; at full rank, or folded into the last `rank` score channels.

    Initial gates: `neutral` 1 and 0, the base model (1 and 1 with a rank: as much score variance as the base has, and
    a fold that learns from the first step); `even` both sqrt(1/2), symmetric scores of the base's variance, full rank
    only; `series` 0.9 and 0.1.
    """

    target: str = "blocks.*.attn.core"
    rank: PositiveInt | None = None
    init: Literal["neutral", "even", "series"] = "neutral"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        if self.rank is None:
            init = {"neutral": (1.0, 0.0), "even": (0.5**0.5, 0.5**0.5), "series": (0.9, 0.1)}[self.init]
            return TiedCore(spec, init=init)
        if self.rank >= spec.head_dim:
            raise ValueError(f"rank must be below head_dim = {spec.head_dim}, got {self.rank}")
        if self.init == "even":
            raise ValueError("init = 'even' is for full rank; drop rank, or take 'neutral'")
        if spec.score_scale is not None:
            raise ValueError("the fold scores rank channels at any width; n_embd / n_head must be that of model.base")
        return FoldedCore(spec, rank=self.rank, init=(1.0, 1.0) if self.init == "neutral" else (0.9, 0.1))

    def repack(self, model: nn.Module, site: str) -> bool:
        """Sets U to select the last `rank` channels, so that they score w_r k_i . q_j and stay tied."""
        if self.rank is None:
            return False  # the gates alone determine reciprocity
        fold = cast("FoldedCore", model.get_submodule(site)).u.weight
        fold.zero_()
        fold[:, -self.rank :] = torch.eye(self.rank, device=fold.device)
        return True


class TiedCore(Core):
    """Computes scores in both directions by one call over twice the channels."""

    s: Tensor  # activation, moved by the schedule
    widths = 2  # score channels over head_dim

    def __init__(self, spec: ModelSpec, *, init: tuple[float, float]):
        super().__init__(spec.dropout, scale=spec.score_scale or spec.head_dim**-0.5)
        self.init, self.n_std = init, spec.head_dim
        self.w_s = nn.Parameter(torch.empty(spec.n_head))  # 1-D: never decayed
        self.w_r = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.w_s, self.init[0])
        nn.init.constant_(self.w_r, self.init[1])
        self.s.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        if cache is None and self.widths > 1:
            if runs_kernel("ra_attention", q) and not (self.training and self.dropout):
                return self._fused(q, k, v)
            if q.shape[2] <= _SHORT:
                return self._written_out(q, k, v)
        wide_q, wide_k = self.fold(q, k)
        return super().forward(wide_q.to(q.dtype), wide_k.to(k.dtype), v, cache)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        std, rec = 1 + self.s * (self.w_s - 1), self.s * self.w_r  # [H]
        return ra_attention(q, k, v, std[:, None].expand(-1, q.shape[-1]), w_r=rec, scale=self.scale)

    def _written_out(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        std, rec = 1 + self.s * (self.w_s - 1), self.s * self.w_r  # [H]
        one_way = scores_of(q, k, scale=self.scale)  # [B, H, T, T]
        scores = std[:, None, None] * one_way + rec[:, None, None] * one_way.mT
        probs = scores.masked_fill(~causal(scores), float("-inf")).softmax(-1)
        return F.dropout(probs, self.dropout, self.training).to(v.dtype) @ v

    def fold(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys whose products are the scores; at s = 0 the scores of q and k."""
        std, rec = 1 + self.s * (self.w_s - 1), self.s * self.w_r  # [H]
        wide_q = torch.cat([std[:, None, None] * q, rec[:, None, None] * k], dim=-1)
        return wide_q, torch.cat([k, q], dim=-1)  # [B, H, S, 2D]

    def probes(self) -> dict[str, Tensor]:
        return {"w_s": self.w_s, "w_r": self.w_r} | {
            "effective w_s": 1 + self.s * (self.w_s - 1),
            "effective w_r": self.s * self.w_r,
        }

    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Returns the variance share of the reciprocal scores, from the channels after the first `n_std`."""
        all_q, all_k = self.fold(q, k)
        part = all_q[..., self.n_std :], all_k[..., self.n_std :]
        return {"share of score variance": score_share(part, (all_q, all_k))}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide_v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        return super().attend(q, k, wide_v)[..., : v.shape[-1]]

    def flops_per_token(self, spec: ModelSpec) -> int:
        """Returns FLOPs of both products at full width including padding, or at the base's width for short contexts."""
        return (1 if spec.block_size <= _SHORT else self.widths) * super().flops_per_token(spec)

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        return self.widths * spec.n_embd, spec.n_embd


class FoldedCore(TiedCore):
    """The reciprocal scores folded into the last `rank` channels of the base's width."""

    widths = 1

    def __init__(self, spec: ModelSpec, *, rank: int, init: tuple[float, float]):
        super().__init__(spec, init=init)
        self.n_std = spec.head_dim - rank
        self.u = Fold(spec, rank)

    def probes(self) -> dict[str, Tensor]:
        return super().probes() | {"effective w_r": 1 + self.s * (self.w_r - 1)}

    def fold(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        std, rec = 1 + self.s * (self.w_s - 1), self.w_r  # [H]
        low_q, low_k = q[..., self.n_std :], k[..., self.n_std :]  # [B, H, S, R]
        low_q = low_q + self.s * (rec[:, None, None] * self.u(k) - low_q)
        low_k = low_k + self.s * (self.u(q) - low_k)
        new_q = torch.cat([std[:, None, None] * q[..., : self.n_std], low_q], dim=-1)
        return new_q, torch.cat([k[..., : self.n_std], low_k], dim=-1)


class Fold(nn.Module):
    """Projects x [B, H, S, D] -> U^T x [B, H, S, R] per head; applied to queries and to keys."""

    decayed = ("weight",)
    fan_in: Mapping[str, int | None] = MappingProxyType({"weight": 1})

    def __init__(self, spec: ModelSpec, rank: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.n_head, spec.head_dim, rank))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * 2 * self.weight.numel()
