"""Random walks with restart over a graph of similar tokens, added to attention over a window.

    y = softmax_window(q k^T / sqrt(D)) v + gamma A v
    A = alpha sum_{t <= steps} (1 - alpha)^t P^t,  P = W / row sums

W holds the cosines of queries and keys that are at least `threshold`, on edges to the `window` previous tokens and to
the `topk` most similar of all previous tokens, the token itself included; of A the `topk` largest of a row are read
out. `reversible` takes the mean of both directions' cosines; `reciprocal` mixes A with a walk on transposed cosines.
Source: the reference's random-walk steps R0 to R3 of November 2025, vectorised, and causal: edges, walk and read-out
of a token reach no later token, so that every power of P stays lower triangular. Gradients go through the walk.
As run (profile `as_run`) they did not, edges went both ways, and every position saw the future: see `leaks`.
All products are of whole matrices [T, T] in fp32: for studies of a mechanism, not for long contexts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.legacy._idle import Idle
from ratrain.model.gpt2 import Core
from ratrain.model.scores import causal, scores_of
from ratrain.registry import Patch, register

_LEAST = 1e-8  # smallest sum of a row


@register("rwr")
class RandomWalk(Patch):
    """Window attention and the read-out of a random walk with restart."""

    transfers: ClassVar[str] = "it reproduces runs of the reference, whose draws were of one width"

    target: str = "blocks.*.attn.core"
    profile: Literal["intended", "as_run"] = Field(default="intended", description="as_run: sees the future, as it did")
    alpha: PositiveFloat = Field(default=0.2, lt=1, description="chance of a restart at each step")
    steps: int = Field(default=4, ge=0, description="of the walk")
    topk: PositiveInt = Field(default=32, description="edges by similarity, and entries that are read out")
    window: PositiveInt = Field(default=128, description="tokens back that attention and edges reach")
    threshold: float = Field(default=0.0, ge=0, le=1, description="cosine below which there is no edge")
    gamma: float = Field(default=0.3, ge=0, description="weight of the walk's output")
    reversible: bool = False
    reciprocal: float = Field(default=1.0, ge=0, le=1, description="share of the forward walk; the rest goes backward")
    discoverability: bool = Field(default=False, description="a learned direction per head that keys are sought by")

    @property
    def leaks(self) -> str | None:
        """Returns the reason if the patch is not causal, else None."""
        if self.profile == "intended":
            return None
        return "edges, walk and read-out reach later tokens: its losses do not say how well it predicts"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return (WalkCore if self.profile == "intended" else LeakingCore)(spec, self)


class WalkCore(Core):
    """Window attention plus the walk; s activates both: outside the window log(1 - s) is added to the scores."""

    s: Tensor  # activation, set by the schedule

    def __init__(self, spec: ModelSpec, options: RandomWalk):
        super().__init__(spec.dropout)
        self.options = options
        self.seeker = nn.Parameter(torch.empty(spec.n_head, spec.head_dim)) if options.discoverability else None
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.seeker is not None:
            nn.init.zeros_(self.seeker)
        self.s.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        all_q, k, v = (q, k, v) if cache is None else cache.append(q, k, v)
        walk = self.walk(all_q, k, q.shape[2])  # [B, H, S, T]
        return (self.local(q, k, v) + self.s * self.options.gamma * (walk.to(v.dtype) @ v)).to(q.dtype)

    def local(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [B, H, S, D] to the tokens of the window."""
        scores = scores_of(q, k)
        if self.seeker is not None:
            wide = k.to(scores.dtype)
            scores = scores + self.s * (wide * self.seeker.to(scores.dtype)[:, None]).sum(-1)[:, :, None]
        seen = causal(scores)
        outside = seen.tril(seen.shape[1] - seen.shape[0] - self.options.window - 1)
        scores = scores + torch.where(outside, torch.log1p(-self.s), 0.0).to(scores.dtype)  # exact at 0 and at 1
        probs = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return F.dropout(probs, self.dropout, self.training).to(v.dtype) @ v

    def walk(self, q: Tensor, k: Tensor, n_new: int) -> Tensor:
        """q, k of all T tokens -> read-out weights of the newest `n_new` tokens over all T, [B, H, n_new, T]."""
        o = self.options
        cosines = _cosines(q, k)
        mean = cosines if not o.reversible else (cosines + cosines.mT) / 2
        visits = self.visits(self.transitions(mean), n_new)
        if o.reciprocal < 1:
            backward = self.visits(self.transitions(cosines.mT), n_new)
            visits = o.reciprocal * visits + (1 - o.reciprocal) * backward
        return _largest(visits, o.topk)

    def transitions(self, cosines: Tensor) -> Tensor:
        """Cosines [B, H, T, T] -> P: rows that sum to 1 over tokens up to their own; without edges, the identity's."""
        o = self.options
        seen = causal(cosines)
        near = seen & ~seen.tril(-o.window - 1)
        alike = _largest(cosines.masked_fill(~seen, float("-inf")), o.topk, fill=float("-inf")) > float("-inf")
        weights = cosines * ((near | (alike & seen)) & (cosines >= o.threshold))
        total = weights.sum(-1, keepdim=True)
        stay = torch.eye(cosines.shape[-1], dtype=cosines.dtype, device=cosines.device)
        return torch.where(total > _LEAST, weights / total.clamp(min=_LEAST), stay)

    def visits(self, transitions: Tensor, n_new: int) -> Tensor:
        """alpha sum_t (1 - alpha)^t P^t, its last `n_new` rows."""
        o = self.options
        total = transitions.shape[-1]
        start = torch.eye(total, dtype=transitions.dtype, device=transitions.device)[-n_new:].expand_as(
            transitions[:, :, -n_new:]
        )
        visits, at = start, transitions[:, :, -n_new:]
        for t in range(1, o.steps + 1):
            visits = visits + (1 - o.alpha) ** t * at
            at = at @ transitions if t < o.steps else at
        return o.alpha * visits

    def flops_per_token(self, spec: ModelSpec) -> int:
        """FLOPs of scores, cosines, both products with values, and the walk's products with the whole of P."""
        walks = 1 if self.options.reciprocal == 1 else 2
        powers = walks * max(0, self.options.steps - 1) * 2 * spec.n_head * spec.block_size**2
        return 8 * spec.block_size * spec.n_embd + powers

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        return 2 * spec.n_embd, spec.n_embd


class LeakingCore(WalkCore):
    """The walk as the reference ran it: over all tokens, later ones included, and without a gradient."""

    def __init__(self, spec: ModelSpec, options: RandomWalk):
        super().__init__(spec, options)
        self.dropout, self.seeker = 0.0, None  # the reference dropped both
        if options.discoverability:
            self.idle = Idle(seeker=(spec.n_head, spec.head_dim))

    @torch.no_grad()
    def walk(self, q: Tensor, k: Tensor, n_new: int) -> Tensor:
        o = self.options
        visits = self.visits(self.transitions(_cosines(q, k)), q.shape[2])
        if o.reciprocal < 1:
            visits = o.reciprocal * visits + (1 - o.reciprocal) * visits.mT
        return _largest(visits, o.topk)[:, :, -n_new:]

    def transitions(self, cosines: Tensor) -> Tensor:
        o = self.options
        everywhere = torch.ones_like(cosines[0, 0], dtype=torch.bool)
        near = everywhere.tril(o.window) & everywhere.triu(-o.window)
        alike = _largest(cosines, o.topk, fill=float("-inf")) > float("-inf")
        edges = (near | alike) & (cosines >= o.threshold)
        stay = torch.eye(cosines.shape[-1], dtype=cosines.dtype, device=cosines.device)
        weights = torch.where(edges.any(-1, keepdim=True).any(-2, keepdim=True), cosines * edges, stay)
        total = weights.sum(-1, keepdim=True).clamp(min=_LEAST)
        if not o.reversible:
            return weights / total
        return (weights / total + weights.mT / (total + _LEAST)) / 2


def _cosines(q: Tensor, k: Tensor) -> Tensor:
    """q, k [B, H, T, D] -> cosines of queries and keys [B, H, T, T], in fp32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return F.normalize(q.to(wide), dim=-1) @ F.normalize(k.to(wide), dim=-1).mT


def _largest(x: Tensor, count: int, *, fill: float = 0.0) -> Tensor:
    """x with all but the `count` largest of each row replaced by `fill`."""
    best = x.topk(min(count, x.shape[-1]))
    return torch.full_like(x, fill).scatter(-1, best.indices, best.values)
