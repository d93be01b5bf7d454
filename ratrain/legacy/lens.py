"""Lens-gated attention: a sum of up to three scores (lenses), weighted per head by a softmax of learned gates.

    logits_ij = w_std S_ij + w_rec S_ji + w_disc k_j . u_h,   S = q k^T / sqrt(D)

reciprocity scores the other direction; discoverability adds a score of each key for all queries (u [H, D] learned).
Further options: keys and values of lower rank (`compress`), a summary of attention for the MLP (`context`), and a
`route` that shifts weight from attention to the MLP during a run.
Source: the reference's lens study of November 2025 (steps L0 to L7). As intended, only active lenses share the softmax,
the projections keep their biases, dropout stays, and the schedule of the route is in fractions of the budget. As run
(profile `as_run`) all three shared the softmax, so that no step had a baseline; biases and the MLP's dropout were lost;
every block had the route's parameter, used or not; `mlp = false` was ignored; and the route moved from step 2000 to
10000, later than most runs ended. With reciprocity, decoding caches queries as well as keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ratrain.config.schema import ActivationSection, ModelSpec, Section, Span
from ratrain.legacy._idle import Idle
from ratrain.legacy._latent import TorchLinear
from ratrain.legacy._lens_block import CompressedQKV, Context, LensBlock, LensMLP, Route, attention_of
from ratrain.model.gpt2 import QKV, Block, Core, Linear
from ratrain.model.scores import causal, scores_of
from ratrain.registry import Patch, register

Part = Annotated[float, Field(gt=0, lt=1)]
_STARTS = {"std": 2.2, "rec": 0.6, "disc": 0.1}  # logits of the gates
_ANNEAL = ActivationSection(kind="ramp", after=Span(fraction=0.2), over=Span(fraction=0.8))


class ContextSection(Section):
    """A summary of attention's output, blended into the MLP's hidden channels."""

    rank: PositiveInt | Part = Field(default=1 / 6, description="channels of the summary: a number, or part of n_embd")
    alpha: PositiveFloat = Field(default=0.1, le=1, description="initial share, learned")
    conductor: bool = Field(default=False, description="only while the route to attention is below one half")


class RouteSection(Section):
    """Weight that shifts from attention (g) to the MLP (1 - g)."""

    start: float = Field(default=2.2, description="initial logit of g, learned")
    end: float = Field(default=-1.0, description="logit at the end of the schedule, if nothing were learned")
    anneal: ActivationSection = Field(default=_ANNEAL, description="the way from start to end")


@register("lens")
class Lens(Patch):
    """Lens-gated scores, and the other parts of the lens study, which are off unless given."""

    transfers: ClassVar[str] = "it reproduces runs of the reference, whose draws were of one width"

    target: str = "blocks.*"  # narrowed to the smallest part of a block that the active options need
    profile: Literal["intended", "as_run"] = Field(
        default="intended", description="as_run: as the reference computed it"
    )
    reciprocity: bool = True
    discoverability: bool = True
    mlp: bool = Field(default=True, description="whether the blocks have one")
    compress: PositiveInt | Part | None = Field(
        default=None, description="rank of keys and values: a number, or part of n_embd; none: as the base"
    )
    context: ContextSection | None = None
    route: RouteSection | None = None

    @model_validator(mode="after")
    def _fits(self):
        if not self.mlp and (self.context or self.route):
            raise ValueError("mlp = false leaves nothing for context and route to act on")
        if self.context and self.context.conductor and not self.route:
            raise ValueError("context.conductor depends on the route; give route = {}")
        if not (self.as_run or self._lenses or self.compress or self._whole):
            raise ValueError("nothing is on; give a lens, compress, context or route, or drop the patch")
        return self

    @property
    def as_run(self) -> bool:
        return self.profile == "as_run"

    @property
    def anneals(self) -> ActivationSection | None:
        """The schedule of the buffers `anneal`."""
        return self.route.anneal if self.route else None

    @property
    def _lenses(self) -> tuple[str, ...]:
        return ("rec",) * self.reciprocity + ("disc",) * self.discoverability

    @property
    def _whole(self) -> bool:
        return self.as_run or not self.mlp or bool(self.context or self.route)

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        if self._whole:
            return {self.target: self.build}
        found: dict[str, Callable[[nn.Module, ModelSpec], nn.Module]] = {}
        if self._lenses:
            found[f"{self.target}.attn.core"] = lambda old, spec: self._core(spec)
        if self.compress:
            found[f"{self.target}.attn.qkv"] = lambda old, spec: self._qkv(cast("Any", old), spec)
        return found

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        block = cast("Block", old)
        parts = {"qkv": self._qkv(cast("QKV", block.attn.qkv), spec)}
        if self._lenses or self.as_run:
            parts["core"] = self._core(spec)
        if self.as_run:
            parts["proj"] = Linear(spec.n_embd, spec.n_embd, bias=False, std=cast("Linear", block.attn.proj).std)
        attn = attention_of(block.attn, spec, **parts)
        context = self._context(spec)
        mlp = LensMLP(block.mlp, context=context, dropout=0.0 if self.as_run else spec.dropout)
        route = Route(start=self.route.start, end=self.route.end) if self.route else None
        built = LensBlock(block, attn=attn, mlp=mlp if self.mlp or self.as_run else None, route=route)
        if self.as_run and route is None:
            built.idle = Idle(route_raw=(1,))
        return built

    def closed(self) -> Patch | None:
        """Keeps the options with another structure than the base: lower-rank keys and values, blocks without MLPs."""
        if not (self.as_run or self.compress or not self.mlp):
            return None
        off = {"reciprocity": False, "discoverability": False, "context": None, "route": None}
        return self.model_copy(update=off)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _core(self, spec: ModelSpec) -> LensCore:
        return LensCore(spec, self._lenses, shared=tuple(_STARTS) if self.as_run else ("std", *self._lenses))

    def _qkv(self, old: QKV, spec: ModelSpec) -> nn.Module:
        bias = spec.bias and not self.as_run
        if self.compress is None:
            return QKV(spec.n_embd, spec.n_head, bias=False) if self.as_run else old
        if spec.qk_norm != "none":
            raise ValueError("compress has no norm of queries and keys; set model.qk_norm = 'none'")
        return CompressedQKV(spec, _channels(self.compress, spec, "compress"), std=old.std, bias=bias)

    def _context(self, spec: ModelSpec) -> Context | None:
        o = self.context
        if o is None:
            return None
        rank = _channels(o.rank, spec, "context.rank")
        drawn = TorchLinear if self.as_run else Linear
        return Context(spec, rank, start=o.alpha, conductor=o.conductor, drawn=drawn)


def _channels(asked: float, spec: ModelSpec, key: str) -> int:
    """Returns a number of channels, from a number or a part of n_embd. Raises ValueError above n_embd."""
    found = asked if isinstance(asked, int) else max(1, round(asked * spec.n_embd))
    if found > spec.n_embd:
        raise ValueError(f"{key} must be at most n_embd = {spec.n_embd}, got {found}")
    return found


class LensCore(Core):
    """Attention over gated scores; `lenses` are active besides the plain one, `shared` are in the softmax of gates."""

    s: Tensor  # activation, moved by the schedule

    def __init__(self, spec: ModelSpec, lenses: tuple[str, ...], *, shared: tuple[str, ...]):
        super().__init__(spec.dropout)
        self.lenses, self.shared = lenses, shared
        for name in shared:  # 1-D each: never decayed, and fp32 with bf16 weights
            self.register_parameter(name, nn.Parameter(torch.empty(spec.n_head)))
        self.seeker = Seeker(spec) if "disc" in lenses else None
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for name in self.shared:
            nn.init.constant_(getattr(self, name), _STARTS[name])
        self.s.fill_(1.0)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weight of each lens in the softmax, [H]."""
        gates = torch.stack([getattr(self, name) for name in self.shared]).softmax(0)
        return dict(zip(self.shared, gates, strict=True))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:  # each [B, H, S, D]
        all_q, all_k, v = (q, k, v) if cache is None else self._kept(cache, q, k, v)
        scores, w = scores_of(q, all_k), self.weights()  # [B, H, S, T]
        logits = (1 + self.s * (w["std"] - 1))[:, None, None] * scores
        if "rec" in self.lenses:
            reverse = scores.mT if q.shape == all_q.shape else scores_of(all_q, k).mT  # q_j . k_i of the newest i
            logits = logits + (self.s * w["rec"])[:, None, None] * reverse
        if self.seeker is not None:
            logits = logits + (self.s * w["disc"])[:, None, None] * self.seeker(all_k)[:, :, None]
        probs = logits.masked_fill(~causal(logits), float("-inf")).softmax(-1)
        return F.dropout(probs, self.dropout, self.training).to(v.dtype) @ v

    def _kept(self, cache: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if "rec" in self.lenses:
            return cache.append(q, k, v)
        return q, *cache.append(k, v)

    def probes(self) -> dict[str, Tensor]:
        return {f"w_{name}": weight for name, weight in self.weights().items()}

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        return spec.n_embd * (2 if "rec" in self.lenses else 1), spec.n_embd


class Seeker(nn.Module):
    """Scores every key by a learned direction u [H, D]: k [B, H, T, D] -> k . u [B, H, T], in fp32 at least."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.u = nn.Parameter(torch.empty(spec.n_head, spec.head_dim))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.u, std=0.02, generator=generator)

    def forward(self, k: Tensor) -> Tensor:
        wide = torch.promote_types(k.dtype, torch.float32)
        return (k.to(wide) * self.u.to(wide)[:, None]).sum(-1)
