"""Causal KV pruning: what attention has hardly looked at leaves the cache, for good.

Queries come in blocks. Those of a block see what was kept before it and the block's own keys up to themselves. At the
end of a block, at token e, the K_e most important of the kept and the block's own stay: K_e = ceil(keep e) for a
fraction, min(e, keep) for a count; the rest is evicted and never comes back. Importance of a key is the attention mass
that it received from all queries so far over the number of queries that could see it (exposure; H2O without it).
Whatever their mass, the newest key comes first, then the sinks, then the most recent keys: as large a part of `recency`
as K_e is of the full budget, so that a short context is not all recency. Nothing in this looks ahead: the whole forward
pass, and decoding with a cache from which the evicted are gone, give the same.

`v_only`: all keys stay and only values leave, so that probabilities are the base's and the mass of what has left is
dropped, given to the kept (renormalise), or spent on the mean of the values that have left (residual). `kv`: both
leave, and the softmax is over the kept.

`learned`: the fraction is a parameter per head; a soft rank, straight through, gives it a gradient, and a target or a
price on it enters the loss's gradient (not the loss that is told).

A GPU runs the kernels of kernels/kv_prune, for learned fractions too, where there is neither dropout nor a prior, the
activation is a switch and the softmax is over the kept (`kv`, or `renormalise`). Elsewhere, and on a CPU, scores of a
block [B, H, block, e] are written out: there training saves neither time nor memory, decoding does.
Sources: H2O (Zhang et al. 2023, arXiv:2306.14048: heavy hitters, evicted permanently), StreamingLLM (Xiao et al. 2023,
arXiv:2309.17453: sinks and a window), TOVA (Oren et al. 2024, arXiv:2401.06104). The reference chose one set per
sequence from all its queries, without a causal mask: every position saw the future.
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
    """The kept fraction as a parameter per head, and what keeps it from 1: one of `target` and `price`."""

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

    weight: Share = Field(default=0.5, description="of the prior in the blend")
    momentum: Part = Field(default=0.9, description="of the running mean, from step to step of training")
    buckets: PositiveInt = Field(default=16, description="stretches of the longest context")


@register("kv_prune")
class KVPrune(Patch):
    """Keeps `keep` of the cache: a fraction of the tokens so far, or a count. Fractions of `recency`, `sinks` and
    `block` are of the longest context.

    `rule`: what is important. `mass`, or a baseline of the same budget: `random`, drawn once per head and position;
    `window`, the newest. `keep_by_layer` has other fractions by number of the layer. With `learned`, `keep` is where
    the fraction of each head starts.
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
        return {**special, self.target: self.build}  # the first that matches a site builds there

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
    """How many tokens are kept, and which come first."""

    def __init__(self, keep: int | float, *, recency: int, sinks: int):
        self.keep, self.recency, self.sinks = keep, recency, sinks

    def at(self, tokens: int) -> int:
        """Kept after so many tokens."""
        if isinstance(self.keep, int):
            return min(tokens, self.keep)
        return min(tokens, max(1, math.ceil(self.keep * tokens - 1e-9)))

    def recent_at(self, tokens: int, length: int) -> int:
        """Of the newest after so many tokens of `length`, how many come first."""
        return math.ceil(self.recency * self.at(tokens) / self.at(length))


class PrunedCore(Core):
    """Attention in blocks of queries, with what was kept before each."""

    s: Tensor  # activation, moved by the schedule
    noise: Tensor
    prior: Tensor  # [H, buckets]
    received: Tensor
    counted: Tensor

    def __init__(self, spec: ModelSpec, options: KVPrune, budget: Budget, *, block: int):
        super().__init__(spec.dropout)
        self.options, self.budget, self.block = options, budget, block
        self.length, self.n_layer, self.n_head = spec.block_size, spec.n_layer, spec.n_head
        self.gradual = True  # whether s may ever be between 0 and 1; the build knows better
        self.register_buffer("s", torch.empty(()))
        if options.rule == "random":
            self.register_buffer("noise", torch.empty(spec.n_head, spec.block_size))
        if options.prior:
            shape = spec.n_head, options.prior.buckets
            self.register_buffer("prior", torch.empty(shape))
            self.register_buffer("received", torch.empty(shape), persistent=False)  # since the last step
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
        """A cache from which the evicted are gone, where this is switched on for good; the base's where it is off."""
        kinds = {0.0: KVCache, 1.0: partial(PrunedCache, self)}
        return kinds.get(self.s.item(), QueryCache)(length, code)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All queries from the first token on."""
        if self._fuses(q):
            return self._fused(q, k, v)
        # once: every block takes a part of them, which a product would otherwise copy anew
        q, k, v = (x.contiguous() for x in (q, k, v))
        pieces = [self.spend(probs, v[:, :, : probs.shape[3]], weight) for _, probs, weight in self._blocks(q, k)]
        return torch.cat(pieces, dim=2)

    def _fuses(self, q: Tensor) -> bool:
        """Whether the kernels serve: they know neither dropout, nor a prior, nor a mechanism that is half open."""
        over = self.options.mode == "kv" or self.options.missing == "renormalise"  # a softmax over the kept, either way
        plain = over and not (self.options.prior or (self.training and self.dropout))
        return plain and not self.gradual and runs_kernel("kv_prune", q)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        counts = [self.budget.at(end) for end in self._ends(q)]
        return pruned_attention(q, k, v, self._keep(q, k, counts), block=self.block, active=self.s)

    def _ends(self, q: Tensor) -> range:
        """Of all blocks but the last."""
        return range(self.block, q.shape[2], self.block)

    def _keep(self, q: Tensor, k: Tensor, counts: list[int] | Tensor, *, ranked: bool = False) -> Kept:
        """Who stays, by the kernels."""
        recent = [self.budget.recent_at(end, self.length) for end in self._ends(q)]
        order = None if self.options.rule == "mass" else self._fixed_order(q.shape[2])
        return keep(
            q, k, counts=counts, block=self.block, recent=recent, sinks=self.budget.sinks, order=order,
            exposure=self.options.exposure, both=self.options.mode == "kv", ranked=ranked, active=self.s,
        )  # fmt: skip

    def _fixed_order(self, n_token: int) -> Tensor:
        """What the rules that look at no mass go by [H, n_token]."""
        if self.options.rule == "random":
            return self.noise[:, :n_token].contiguous()
        return (torch.arange(n_token, device=self.s.device) / self.length).expand(self.n_head, -1).contiguous()

    def _blocks(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Of each block its rows, the probabilities of its queries [B, H, S, seen], and who was kept before it."""
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
        """q [B, H, S, D] of the newest tokens, k [B, H, n, D] -> [B, H, S, n].

        `weight` [B, H, m] is 1 for each of the first m that is kept; none there: all are the block's own.
        """
        scores = scores_of(q, k)
        scores = scores.masked_fill(~causal(scores), float("-inf"))
        if weight is not None and self.options.mode == "kv":
            open_ = (1 - self.s * (1 - weight.detach())).log()
            scores = scores + F.pad(open_, (0, scores.shape[-1] - weight.shape[-1]))[:, :, None]
        return scores.softmax(-1)

    def spend(self, probs: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
        """Probabilities [B, H, S, n] on values [B, H, n, D], those of evicted values by the rule for missing mass."""
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
        """What is left of the probabilities, on the values that are left; `mean` [B, H, D] of those that are gone."""
        total = kept.sum(-1, keepdim=True)
        if self.options.missing == "renormalise":
            kept = kept / total
        y = F.dropout(kept, self.dropout, self.training).to(v.dtype) @ v
        return y if mean is None else y + ((1 - total) * mean[:, :, None]).to(v.dtype)

    def _kept(self, mass: Tensor, weight: Tensor | None, seen: int) -> Tensor:
        """Who stays once `seen` tokens are there [B, H, seen]: 1 or 0, with a gradient to a ratio that is learned."""
        there = torch.ones_like(mass)
        if weight is not None:
            there[:, :, : weight.shape[2]] = weight.detach()
        places = torch.arange(seen, device=mass.device)
        return self.choose(self.priority(mass, places, seen).masked_fill(there == 0, float("-inf")), there)

    @torch.no_grad()
    def _note(self, mass: Tensor) -> None:
        """Adds what the keys of a batch have received [B, H, n] to the sums of this step."""
        places = torch.arange(mass.shape[2], device=mass.device)
        importance = self._importance(mass, places, mass.shape[2]).sum(0)  # [H, n]
        buckets = self._bucket(places).expand_as(importance)
        self.received.scatter_add_(1, buckets, importance.to(self.received.dtype))
        self.counted.scatter_add_(1, buckets, torch.full_like(importance, len(mass), dtype=self.counted.dtype))

    @torch.no_grad()
    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """Once a step, after all of its micro-batches: moves the running mean; `total` sums over the processes."""
        if self.options.prior:
            received, counted = total(self.received), total(self.counted)
            new = torch.lerp(received / counted.clamp(min=1), self.prior, self.options.prior.momentum)
            self.prior.copy_(torch.where((counted > 0) & new.isfinite(), new, self.prior))
            self.forget()

    def forget(self) -> None:
        """What was noted since the last step counts for nothing."""
        if self.options.prior:
            self.received.zero_()
            self.counted.zero_()

    def _bucket(self, places: Tensor) -> Tensor:
        return places * self.prior.shape[1] // self.length

    def _importance(self, mass: Tensor, places: Tensor, seen: int) -> Tensor:
        return mass / (seen - places) if self.options.exposure else mass

    def choose(self, order: Tensor, there: Tensor) -> Tensor:
        """Who stays [B, H, n] of those that are `there`, best first by `order`."""
        return best(order, self.budget.at(order.shape[-1]))[0]

    def counts(self, seen: int) -> Tensor:
        """How many tokens each head keeps [H], not yet rounded up."""
        return torch.full_like(self.s, self.budget.at(seen)).expand(self.n_head)

    @torch.no_grad()
    def priority(self, mass: Tensor, places: Tensor, seen: int) -> Tensor:
        """Order [B, H, n] in which keys stay, highest first: mass received [B, H, n], their positions [n] or alike."""
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
        ahead = 2.0 * self.length  # of any mass, which is at most a sum over as many queries as there are tokens
        order = torch.where(places >= seen - self.budget.recent_at(seen, self.length), ahead + places, order)
        order = torch.where(places < self.budget.sinks, 4 * ahead - places, order)
        return torch.where(places == seen - 1, 5 * ahead, order)

    def observe_attention(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Per head [H]: of the tokens before the last block the part that is kept; the dense attention's mass that
        falls on what a query still sees; of what is kept, the part that was kept a block earlier already."""
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
        """Of both products over a full context: every block against all that came before it."""
        ends = [min(start + self.block, spec.block_size) for start in range(0, spec.block_size, self.block)]
        pairs = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
        return 4 * spec.n_embd * pairs // spec.block_size

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        """At the end of a full context: what was kept before the last block, and that block."""
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
            return pruned_attention(q, k, v, self._keep(q, k, counts), block=self.block, active=self.s)
        return pruned_attention(
            q, k, v, self._keep(q, k, counts, ranked=True), block=self.block,
            counts=counts, softness=self.learned.softness, active=self.s,
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
        """What is minimised beside the loss, in nats per token; the layers of a model share it out."""
        mean = self.ratio.sigmoid().mean()
        if self.learned.target is not None:
            return self.s * (mean - self.learned.target).square() / self.n_layer
        return self.s * (self.learned.price or 0.0) * mean / self.n_layer

    def probes(self) -> dict[str, Tensor]:
        return {"kept fraction": self.ratio.sigmoid()}


class QueryCache(KVCache):
    """Of a pruning that is half open: nothing may leave yet, and who would is decided anew from all queries."""


class PrunedCache:
    """Keys and codes of values [B, H, held, channels] of what is kept, then of the block under way; v_only keeps every
    key.

    Heads that have learned to keep fewer than others hold as many, of which `weight` [B, H, held] counts theirs.
    """

    lost: Tensor  # [B, H, D], sum of the values that have left, folded as the code folds them

    def __init__(self, core: PrunedCore, length: int, code: ValueCode = PLAIN):
        self.core, self.length, self.code, self.size, self.held = core, length, code, 0, 0
        self.v_only = core.options.mode == "v_only"
        self._room: dict[str, Tensor] = {}  # each [B, H, room, ...], of which the first `held` (or `size`) count

    @property
    def nbytes(self) -> tuple[int, int]:
        """Of the keys and of the values that are held."""
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
        """Positions of the values [B, H, held]."""
        return self._room["places"][:, :, : self.held]

    @property
    def mass(self) -> Tensor:
        return self._room["mass"][:, :, : self.held]

    @property
    def weight(self) -> Tensor:
        return self._room["weight"][:, :, : self.held]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Adds tokens of one block, [B, H, S, D] each, attends for them and, at the block's end, evicts."""
        self._append(k, v)
        places, weight = (self.places, self.weight) if self.v_only else (None, None)
        y, spent = decode_kept(
            q, self.keys, self.code.fold(self.values), self.mass, places=places, weight=weight,
            renormalise=self.v_only and self.core.options.missing == "renormalise",
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
        """Once, for all that will ever be held: a cache that is made anew for every token is copied for every token."""
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
        """Of the values that are held, folded."""
        return (self.code.fold(self.values) * self.weight[..., None]).to(self.lost.dtype).sum(2)


def _rows(tensor: Tensor, places: Tensor) -> Tensor:
    """Those of tensor [B, H, n, channels] at places [B, H, m]."""
    return tensor.gather(2, places[..., None].expand(-1, -1, -1, tensor.shape[3]))
