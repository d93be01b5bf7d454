"""Causal KV pruning: permanently evicts cache entries that received little attention.

Queries are processed in blocks. Queries of a block attend to the entries kept before the block and to the block's own
keys up to their position. At the end of a block, at token e, the K_e most important of the kept and the block's own
entries stay: K_e = ceil(keep e) for a fraction, min(e, keep) for a count. The rest is evicted permanently. The
importance of a key is the attention mass received from all queries so far over the number of queries that could attend
to it (exposure; H2O does not divide). Regardless of mass, the newest key ranks first, then the sinks, then the most
recent keys: `recency` scaled by K_e over the full budget, so that recent keys do not fill a short context. All
decisions are causal: the whole forward pass equals decoding with a cache without the evicted entries.

`v_only`: evicts values but keeps all keys. Probabilities are the base's, and the mass of evicted values is dropped
(drop), redistributed to the kept values (renormalise), or spent on the mean of the evicted values (residual). `kv`:
evicts both, and the softmax is over the kept keys.

`learned`: the fraction is a parameter per head. A soft rank with a straight-through estimator provides its gradient; a
target or a price enters the gradient of the loss, not the reported loss.

A GPU runs the kernels of kernels/kv_prune, also for learned fractions, if there is neither dropout nor a prior, the
activation is a switch and the softmax is over the kept entries (`kv`, or `renormalise`). Otherwise, and on a CPU,
scores of a block [B, H, block, e] are materialised: training then saves neither time nor memory, decoding does.
Sources: H2O (Zhang et al. 2023, arXiv:2306.14048: heavy hitters, evicted permanently), StreamingLLM (Xiao et al. 2023,
arXiv:2309.17453: sinks and a window), TOVA (Oren et al. 2024, arXiv:2401.06104). The reference selects one set per
sequence from all its queries, without a causal mask: every position has access to the future.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec, Section
from ratrain.kernels.kv_prune import Kept, best, decode_kept, keep, pruned_attention
from ratrain.kernels.placement import runs_kernel
from ratrain.model.cache import PLAIN, KVCache, ValueCode
from ratrain.model.gpt2 import Core
from ratrain.model.scores import causal, scores_of
from ratrain.registry import Patch, register

Share = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]


class Learned(Section):
    """The kept fraction as a parameter per head, kept from 1 by one of `target` and `price`."""

    target: Share | None = Field(default=None, description="the mean over heads is drawn to it")
    price: PositiveFloat | None = Field(default=None, description="in nats per token, for the whole cache")
    softness: PositiveFloat = Field(default=0.05, description="width of the soft rank, over the tokens so far")

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.target is None) == (self.price is None):
            raise ValueError("needs one of target and price: nothing else keeps the fraction from 1")
        return self


class Prior(Section):
    """Importance by place: a running mean per head and bucket of positions, blended into a sequence's own."""

    weight: Share = Field(default=0.5, description="share of the prior in the blend")
    momentum: Part = Field(default=0.9, description="momentum of the running mean over training steps")
    buckets: PositiveInt = Field(default=16, description="equal parts of the longest context, each with its own mean")


@register("kv_prune")
class KVPrune(Patch):
    """Keeps `keep` of the cache: a fraction of the tokens so far, or a count. Fractions of `recency`, `sinks` and
    `block` are of the longest context.

    `rule`: the measure of importance. `mass`, or a baseline of the same budget: `random`, drawn once per head and
    position; `window`, the newest. `keep_by_layer` has other fractions by number of the layer. With `learned`, `keep`
    is the initial fraction of each head.
    """

    target: str = "blocks.*.attn.core"
    mode: Literal["v_only", "kv"] = "v_only"
    missing: Literal["drop", "renormalise", "residual"] = "renormalise"
    keep: PositiveInt | Share = 0.382
    keep_by_layer: Mapping[str, PositiveInt | Share] = Field(
        default={}, description='{ "0" = 1.0 } keeps layer 0 whole'
    )
    recency: NonNegativeInt | Part = 0.0625
    sinks: NonNegativeInt | Part = 0
    block: PositiveInt | Part = 0.125
    rule: Literal["mass", "random", "window"] = "mass"
    exposure: bool = True
    learned: Learned | None = None
    prior: Prior | None = None

    @model_validator(mode="after")
    def _fits(self):
        starts = (self.keep, *self.keep_by_layer.values())
        if self.learned and (self.mode == "kv" or not all(isinstance(keep, float) and keep < 1 for keep in starts)):
            raise ValueError("learned needs mode = 'v_only' (an evicted key has no gradient) and keep below 1 to start")
        if odd := [layer for layer in self.keep_by_layer if not layer.isdecimal()]:
            raise ValueError(f"keep_by_layer: expected numbers of layers, got {odd[0]!r}")
        if self.keep_by_layer and "*" not in self.target:
            raise ValueError(f"keep_by_layer needs a target with a star for the layer, got {self.target!r}")
        if self.prior and self.rule != "mass":
            raise ValueError(f"prior is of the mass that keys receive; rule = {self.rule!r} does not look at it")
        if self.mode == "kv" and self.missing != "renormalise":
            raise ValueError("mode = 'kv' has no missing mass: the softmax is over what is kept; drop missing")
        return self

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        special = {
            self.target.replace("*", layer, 1): partial(self._build, keep=keep)
            for layer, keep in self.keep_by_layer.items()
        }
        return {**special, self.target: self.build}  # the first matching pattern builds a site

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        return self._build(old, spec, keep=self.keep)

    def _build(self, old: nn.Module, spec: ModelSpec, *, keep: int | float) -> nn.Module:
        length = spec.block_size
        budget = Budget(keep, recency=_count(self.recency, length), sinks=_count(self.sinks, length))
        if budget.recency + budget.sinks > budget.at(length):
            raise ValueError(
                f"recency and sinks are {budget.recency} and {budget.sinks} of {length} tokens, but only "
                f"{budget.at(length)} are kept"
            )
        core = LearnedCore if self.learned else PrunedCore
        return core(spec, self, budget, block=max(1, _count(self.block, length)))


def _count(share: int | float, length: int) -> int:
    return share if isinstance(share, int) else round(share * length)


class Budget:
    """The number of kept tokens, and the tokens with priority: recent ones and sinks."""

    def __init__(self, keep: int | float, *, recency: int, sinks: int):
        self.keep, self.recency, self.sinks = keep, recency, sinks

    def at(self, tokens: int) -> int:
        """Returns the number kept after `tokens` tokens."""
        if isinstance(self.keep, int):
            return min(tokens, self.keep)
        return min(tokens, max(1, math.ceil(self.keep * tokens - 1e-9)))

    def recent_at(self, tokens: int, length: int) -> int:
        """Returns the number of newest keys with priority after `tokens` tokens of a context of `length`."""
        return math.ceil(self.recency * self.at(tokens) / self.at(length))


class PrunedCore(Core):
    """Attention in blocks of queries over the entries kept before each block."""

    s: Tensor  # activation, moved by the schedule
    noise: Tensor
    prior: Tensor  # [H, buckets]
    received: Tensor
    counted: Tensor

    def __init__(self, spec: ModelSpec, options: KVPrune, budget: Budget, *, block: int):
        super().__init__(spec.dropout, scale=spec.score_scale)
        self.options, self.budget, self.block = options, budget, block
        self.length, self.n_layer, self.n_head = spec.block_size, spec.n_layer, spec.n_head
        self.gradual = True  # whether s may lie between 0 and 1; set by the build
        self.register_buffer("s", torch.empty(()))
        if options.rule == "random":
            self.register_buffer("noise", torch.empty(spec.n_head, spec.block_size))
        if options.prior:
            shape = spec.n_head, options.prior.buckets
            self.register_buffer("prior", torch.empty(shape))
            self.register_buffer("received", torch.empty(shape), persistent=False)  # sums since the last step
            self.register_buffer("counted", torch.empty(shape), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.options.mode}, keep={self.budget.keep}, block={self.block}"

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.s.fill_(1.0)
        if self.options.rule == "random":
            nn.init.uniform_(self.noise, generator=generator)
        for name in ("prior", "received", "counted") if self.options.prior else ():
            self.get_buffer(name).zero_()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        if cache is None:
            return self._whole(q, k, v)
        if isinstance(cache, QueryCache):
            return self._whole(*cache.append(q, k, v))[:, :, -q.shape[2] :]
        if isinstance(cache, KVCache):
            return super().forward(q, k, v, cache)
        pieces = []
        while q.shape[2]:
            fresh = min(q.shape[2], self.block - cache.size % self.block)
            now, (q, k, v) = [t[:, :, :fresh] for t in (q, k, v)], [t[:, :, fresh:] for t in (q, k, v)]
            pieces.append(cache.attend(*now))
        return torch.cat(pieces, dim=2)

    def new_cache(self, length: int, code: ValueCode = PLAIN):
        """Creates a cache: PrunedCache without evicted entries at s = 1, the base's at s = 0, QueryCache in between."""
        kinds = {0.0: KVCache, 1.0: partial(PrunedCache, self)}
        return kinds.get(self.s.item(), QueryCache)(length, code)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends for all queries from the first token on."""
        if self._fuses(q):
            return self._fused(q, k, v)
        # once: every block slices them, and a product would otherwise copy each slice
        q, k, v = (x.contiguous() for x in (q, k, v))
        pieces = [self.spend(probs, v[:, :, : probs.shape[3]], weight) for _, probs, weight in self._blocks(q, k)]
        return torch.cat(pieces, dim=2)

    def _fuses(self, q: Tensor) -> bool:
        """Whether the kernels apply: they support neither dropout, nor a prior, nor s between 0 and 1."""
        over = self.options.mode == "kv" or self.options.missing == "renormalise"  # softmax over kept entries
        plain = over and not (self.options.prior or (self.training and self.dropout))
        return plain and not self.gradual and runs_kernel("kv_prune", q)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        counts = [self.budget.at(end) for end in self._ends(q)]
        return pruned_attention(q, k, v, self._keep(q, k, counts), block=self.block, active=self.s, scale=self.scale)

    def _ends(self, q: Tensor) -> range:
        """Returns the ends of all blocks but the last."""
        return range(self.block, q.shape[2], self.block)

    def _keep(self, q: Tensor, k: Tensor, counts: list[int] | Tensor, *, ranked: bool = False) -> Kept:
        """Selects the kept entries with the kernels."""
        recent = [self.budget.recent_at(end, self.length) for end in self._ends(q)]
        order = None if self.options.rule == "mass" else self._fixed_order(q.shape[2])
        return keep(
            q, k, counts=counts, block=self.block, recent=recent, sinks=self.budget.sinks, order=order,
            exposure=self.options.exposure, both=self.options.mode == "kv", ranked=ranked, active=self.s,
            scale=self.scale,
        )  # fmt: skip

    def _fixed_order(self, n_token: int) -> Tensor:
        """Returns the ranking [H, n_token] of the rules that do not depend on mass."""
        if self.options.rule == "random":
            return self.noise[:, :n_token].contiguous()
        return (torch.arange(n_token, device=self.s.device) / self.length).expand(self.n_head, -1).contiguous()

    def _blocks(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yields each block's rows, its queries' probabilities [B, H, S, seen], and the weights before it."""
        mass, weight = None, None
        for start in range(0, q.shape[2], self.block):
            rows, seen = slice(start, start + self.block), min(start + self.block, q.shape[2])
            probs = self.probabilities(q[:, :, rows], k[:, :, :seen], weight)
            yield rows, probs, weight
            if seen < q.shape[2]:
                received = probs.detach().sum(2)  # [B, H, seen]
                mass = received if mass is None else received + F.pad(mass, (0, received.shape[2] - mass.shape[2]))
                weight = self._kept(mass, weight, seen)
        if self.options.prior and self.training and mass is not None:
            self._note(mass)

    def probabilities(self, q: Tensor, k: Tensor, weight: Tensor | None) -> Tensor:
        """Computes probabilities from q [B, H, S, D] of the newest tokens and k [B, H, n, D] -> [B, H, S, n].

        `weight` [B, H, m] is 1 for each kept one of the first m keys; None means that all keys are the block's own.
        """
        scores = scores_of(q, k, scale=self.scale)
        scores = scores.masked_fill(~causal(scores), float("-inf"))
        if weight is not None and self.options.mode == "kv":
            open_ = (1 - self.s * (1 - weight.detach())).log()
            scores = scores + F.pad(open_, (0, scores.shape[-1] - weight.shape[-1]))[:, :, None]
        return scores.softmax(-1)

    def spend(self, probs: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
        """Applies probabilities [B, H, S, n] to values [B, H, n, D]; `missing` handles the mass of evicted values."""
        if weight is None or self.options.mode == "kv":
            return F.dropout(probs, self.dropout, self.training).to(v.dtype) @ v
        held = F.pad(1 - self.s * (1 - weight), (0, probs.shape[-1] - weight.shape[-1]), value=1.0)[:, :, None]
        mean = None
        if self.options.missing == "residual":
            gone = 1 - weight  # [B, H, m]
            lost = (v[:, :, : weight.shape[-1]].to(probs.dtype) * gone[..., None]).sum(2)
            mean = lost / gone.sum(2, keepdim=True).clamp(min=1)
        return self.finish(probs * held, v, mean)

    def finish(self, kept: Tensor, v: Tensor, mean: Tensor | None) -> Tensor:
        """Applies the remaining probabilities to the values; `mean` [B, H, D] is the mean of the evicted values."""
        total = kept.sum(-1, keepdim=True)
        if self.options.missing == "renormalise":
            kept = kept / total
        y = F.dropout(kept, self.dropout, self.training).to(v.dtype) @ v
        return y if mean is None else y + ((1 - total) * mean[:, :, None]).to(v.dtype)

    def _kept(self, mass: Tensor, weight: Tensor | None, seen: int) -> Tensor:
        """Returns the weights after `seen` tokens [B, H, seen], 1 kept or 0, with a gradient to a learned ratio."""
        there = torch.ones_like(mass)
        if weight is not None:
            there[:, :, : weight.shape[2]] = weight.detach()
        places = torch.arange(seen, device=mass.device)
        return self.choose(self.priority(mass, places, seen).masked_fill(there == 0, float("-inf")), there)

    @torch.no_grad()
    def _note(self, mass: Tensor) -> None:
        """Adds the importance from the mass received by the keys of a batch [B, H, n] to the sums of this step."""
        places = torch.arange(mass.shape[2], device=mass.device)
        importance = self._importance(mass, places, mass.shape[2]).sum(0)  # [H, n]
        buckets = self._bucket(places).expand_as(importance)
        self.received.scatter_add_(1, buckets, importance.to(self.received.dtype))
        self.counted.scatter_add_(1, buckets, torch.full_like(importance, len(mass), dtype=self.counted.dtype))

    @torch.no_grad()
    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """Updates the running mean once per step, after all micro-batches; `total` sums over the processes."""
        if self.options.prior:
            received, counted = total(self.received), total(self.counted)
            new = torch.lerp(received / counted.clamp(min=1), self.prior, self.options.prior.momentum)
            self.prior.copy_(torch.where((counted > 0) & new.isfinite(), new, self.prior))
            self.forget()

    def forget(self) -> None:
        """Drops the sums accumulated since the last step."""
        if self.options.prior:
            self.received.zero_()
            self.counted.zero_()

    def _bucket(self, places: Tensor) -> Tensor:
        return places * self.prior.shape[1] // self.length

    def _importance(self, mass: Tensor, places: Tensor, seen: int) -> Tensor:
        return mass / (seen - places) if self.options.exposure else mass

    def choose(self, order: Tensor, there: Tensor) -> Tensor:
        """Selects the kept entries [B, H, n] among those `there`, highest `order` first."""
        return best(order, self.budget.at(order.shape[-1]))[0]

    def counts(self, seen: int) -> Tensor:
        """Returns the number of tokens that each head keeps [H], not yet rounded up."""
        return torch.full_like(self.s, self.budget.at(seen)).expand(self.n_head)

    @torch.no_grad()
    def priority(self, mass: Tensor, places: Tensor, seen: int) -> Tensor:
        """Ranks keys [B, H, n], highest kept first, by mass [B, H, n] and positions, [n] or broadcastable."""
        if self.options.rule == "mass":
            order = self._importance(mass, places, seen)
        elif self.options.rule == "window":
            order = (places / self.length).expand_as(mass)
        else:
            order = self.noise[None].expand(len(mass), -1, -1).gather(2, places.expand_as(mass))
        if self.options.prior:
            buckets = self._bucket(places).expand_as(mass)
            usual = self.prior[None].expand(len(mass), -1, -1).gather(2, buckets).to(order.dtype)
            order = torch.lerp(order, usual, self.options.prior.weight)
        ahead = 2.0 * self.length  # above any mass: a sum over at most `length` queries
        order = torch.where(places >= seen - self.budget.recent_at(seen, self.length), ahead + places, order)
        order = torch.where(places < self.budget.sinks, 4 * ahead - places, order)
        return torch.where(places == seen - 1, 5 * ahead, order)

    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Returns per head [H]: the kept part of the tokens before the last block; the mass of dense attention on
        entries that a query still sees; the part of kept entries that was also kept one block earlier."""
        retained, overlap, before, part = [], [], None, q.new_ones(q.shape[1])
        for rows, _, weight in self._blocks(q, k):
            if weight is None:
                continue
            dense = self.probabilities(q[:, :, rows], k[:, :, : min(rows.stop, k.shape[2])], None)
            seen = F.pad(weight, (0, dense.shape[3] - weight.shape[2]), value=1.0)
            retained.append((dense * seen[:, :, None]).sum(3).mean((0, 2)))
            part = weight.mean((0, 2))
            if before is not None:
                both = (weight[:, :, : before.shape[2]] * before).sum(2)
                overlap.append((both / weight.sum(2)).mean(0))
            before = weight
        found = {"kept part": part}
        if retained:
            found["retained mass"] = torch.stack(retained).mean(0)
        if overlap:
            found["overlap of blocks"] = torch.stack(overlap).mean(0)
        return found

    def flops_per_token(self, spec: ModelSpec) -> int:
        """Returns FLOPs of both products over a full context: every block against all tokens up to its end."""
        ends = [min(start + self.block, spec.block_size) for start in range(0, spec.block_size, self.block)]
        pairs = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
        return 4 * spec.n_embd * pairs // spec.block_size

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns elements per token at the end of a full context: kept entries and the last block."""
        last = (spec.block_size - 1) // self.block * self.block
        held = self.budget.at(last) + spec.block_size - last if last else spec.block_size
        few = round(held / spec.block_size * spec.n_embd)
        return (few if self.options.mode == "kv" else spec.n_embd), few


class LearnedCore(PrunedCore):
    """The kept fraction of each head is a parameter: sigmoid(ratio)."""

    def __init__(self, spec: ModelSpec, options: KVPrune, budget: Budget, *, block: int):
        super().__init__(spec, options, budget, block=block)
        assert options.learned
        self.learned = options.learned
        self.ratio = nn.Parameter(torch.empty(spec.n_head))  # 1-D: never decayed

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        nn.init.constant_(self.ratio, math.log(self.budget.keep / (1 - self.budget.keep)))

    def counts(self, seen: int) -> Tensor:
        least = max(1, self.budget.recency + self.budget.sinks)
        return (self.ratio.sigmoid() * seen).clamp(min=min(least, seen), max=seen)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        counts = [self.counts(end) for end in self._ends(q)]
        counts = torch.stack(counts, dim=1) if counts else self.ratio.new_empty(len(self.ratio), 0)  # [H, ends]
        if not torch.is_grad_enabled():
            return pruned_attention(
                q, k, v, self._keep(q, k, counts), block=self.block, active=self.s, scale=self.scale
            )
        return pruned_attention(
            q, k, v, self._keep(q, k, counts, ranked=True), block=self.block,
            counts=counts, softness=self.learned.softness, active=self.s, scale=self.scale,
        )  # fmt: skip

    def choose(self, order: Tensor, there: Tensor) -> Tensor:
        count = self.counts(order.shape[-1])
        hard, place = best(order, count.ceil())
        hard, count = hard * there, count[:, None]
        if not torch.is_grad_enabled():
            return hard
        soft = ((count - place - 0.5) / (self.learned.softness * order.shape[-1])).sigmoid() * there
        return hard + soft - soft.detach()  # the value of hard, the gradient of soft

    def penalty(self) -> Tensor:
        """Returns the term minimised beside the loss, in nats per token; divided by the number of layers."""
        mean = self.ratio.sigmoid().mean()
        if self.learned.target is not None:
            return self.s * (mean - self.learned.target).square() / self.n_layer
        return self.s * (self.learned.price or 0.0) * mean / self.n_layer

    def probes(self) -> dict[str, Tensor]:
        return {"kept fraction": self.ratio.sigmoid()}


class QueryCache(KVCache):
    """The cache at s between 0 and 1: evicts nothing, stores queries, and selects anew from all queries."""


class PrunedCache:
    """Keys and value codes [B, H, held, channels] of kept entries, then of the current block; v_only keeps every key.

    All heads hold the same number of entries; `weight` [B, H, held] is 0 for entries that a head with a smaller
    learned fraction does not keep.
    """

    lost: Tensor  # [B, H, D], sum of the evicted values, folded by the code

    def __init__(self, core: PrunedCore, length: int, code: ValueCode = PLAIN):
        self.core, self.length, self.code, self.size, self.held = core, length, code, 0, 0
        self.v_only = core.options.mode == "v_only"
        self._room: dict[str, Tensor] = {}  # each [B, H, room, ...]; the first `held` (or `size`) are valid

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the cached keys and of the cached values."""
        if not self.size:
            return 0, 0
        return tuple(held.numel() * held.element_size() for held in (self.keys, self.values))  # type: ignore[return-value]

    @property
    def keys(self) -> Tensor:
        return self._room["keys"][:, :, : self.size if self.v_only else self.held]

    @property
    def values(self) -> Tensor:
        return self._room["values"][:, :, : self.held]

    @property
    def places(self) -> Tensor:
        """Positions of the cached values [B, H, held]."""
        return self._room["places"][:, :, : self.held]

    @property
    def mass(self) -> Tensor:
        return self._room["mass"][:, :, : self.held]

    @property
    def weight(self) -> Tensor:
        return self._room["weight"][:, :, : self.held]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Appends tokens of one block, [B, H, S, D] each, attends for them and, at the block's end, evicts."""
        self._append(k, v)
        places, weight = (self.places, self.weight) if self.v_only else (None, None)
        y, spent = decode_kept(
            q, self.keys, self.code.fold(self.values), self.mass, places=places, weight=weight,
            renormalise=self.v_only and self.core.options.missing == "renormalise", scale=self.core.scale,
        )  # fmt: skip
        if self.core.options.missing == "residual":
            n_lost = self.size - self.weight.sum(2, keepdim=True)  # [B, H, 1]
            y = y + ((1 - spent)[..., None] * (self.lost / n_lost.clamp(min=1))[:, :, None]).to(y.dtype)
        if self.size % self.core.block == 0:
            self._evict()
        return self.code.unfold(y).to(v.dtype)

    def _append(self, k: Tensor, v: Tensor) -> None:
        v = self.code.compress(v)
        fresh = k.shape[2]
        if not self.size:
            self._make_room(k, v)
        self.size, self.held = self.size + fresh, self.held + fresh
        self.keys[:, :, -fresh:], self.values[:, :, -fresh:] = k, v
        self.places[:, :, -fresh:] = torch.arange(self.size - fresh, self.size, device=k.device)
        self.mass[:, :, -fresh:], self.weight[:, :, -fresh:] = 0.0, 1.0

    def _make_room(self, k: Tensor, v: Tensor) -> None:
        """Allocates storage once for the largest size: a cache that grows by each token would be copied for each."""
        room = min(self.length, int(self.core.counts(self.length).ceil().max()) + self.core.block)
        wide = torch.promote_types(k.dtype, torch.float32)
        self._room = {
            "keys": k.new_empty(*k.shape[:2], self.length if self.v_only else room, k.shape[3]),
            "values": v.new_empty(*v.shape[:2], room, v.shape[3]),
            "places": torch.empty(*k.shape[:2], room, dtype=torch.int64, device=k.device),
            "mass": k.new_empty(*k.shape[:2], room, dtype=wide),
            "weight": k.new_empty(*k.shape[:2], room, dtype=wide),
        }
        self.lost = torch.zeros_like(self.code.fold(v)[:, :, 0], dtype=wide)

    def _evict(self) -> None:
        order = self.core.priority(self.mass, self.places, self.size).masked_fill(self.weight == 0, float("-inf"))
        counts = self.core.counts(self.size).ceil()  # [H]
        best = order.topk(int(counts.max()), dim=-1).indices
        own = (torch.arange(best.shape[2], device=best.device) < counts[:, None]).expand(best.shape)
        stay, order = best.sort(dim=-1)  # in the order of their positions
        whole = self._sum()
        left = {name: getattr(self, name).gather(2, stay) for name in ("mass", "places")}
        left |= {"values": _rows(self.values, stay), "weight": self.weight.gather(2, stay) * own.gather(2, order)}
        if not self.v_only:
            left["keys"] = _rows(self.keys, stay)
        self.held = stay.shape[2]
        for name, tensor in left.items():
            self._room[name][:, :, : self.held] = tensor
        self.lost = self.lost + whole - self._sum()

    def _sum(self) -> Tensor:
        """Returns the sum of the cached values, folded."""
        return (self.code.fold(self.values) * self.weight[..., None]).to(self.lost.dtype).sum(2)


def _rows(tensor: Tensor, places: Tensor) -> Tensor:
    """Gathers the rows of tensor [B, H, n, channels] at places [B, H, m]."""
    return tensor.gather(2, places[..., None].expand(-1, -1, -1, tensor.shape[3]))
