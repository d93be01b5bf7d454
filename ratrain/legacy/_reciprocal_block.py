"""A block whose MLP reads the attention weights and sends a gate and latents to the attention of the next block.

Shape letters: B batch, T tokens, S newest tokens, H heads, F hidden channels, L latent channels, W width of a part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.legacy._gathered import Gathering
from ratrain.legacy._reciprocal_core import _RAW_BIAS, Latents, ReciprocalCore
from ratrain.legacy._sections import CrossSection
from ratrain.model.gpt2 import MLP, Attention, Block, Linear


class Answer(NamedTuple):
    """Output of an MLP to the attention of the next block."""

    gate: Tensor | None  # [B, H, S, 1], mechanism 1
    back: Tensor | None  # [B, S, L], mechanism 3


class ReciprocalAttention(Gathering):
    """The base's attention around a ReciprocalCore; `value` is the base's own and unused."""

    core: ReciprocalCore

    def __init__(self, old: Attention, spec: ModelSpec, *, qkv: nn.Module, core: ReciprocalCore, proj: nn.Module):
        super().__init__()
        self.qkv, self.pos, self.value, self.core, self.proj = qkv, old.pos, old.value, core, proj
        self.dropout = spec.dropout

    def forward(self, x: Tensor, state: Tensor | None, cache=None) -> tuple[Tensor, Tensor | None]:
        return self.attend(x, Answer(None, None), cache)[0], state

    def attend(self, x: Tensor, answer: Answer, cache: Latents | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """x [B, S, C] -> y [B, S, C], the attention weights [B, H, S, T] if the core computes them, the keys of x."""
        q, k, v = self.qkv(x) if self.core.maps else self.qkv(x, None)
        q, k = self.pos(q, k, 0 if cache is None else cache.size)
        k = self.core.answered(k, answer.back)
        y, probs = self.core.mix(q, k, v, cache, answer.gate)
        y = y.to(q.dtype).transpose(1, 2).flatten(2)
        return F.dropout(self.proj(y), self.dropout, self.training), probs, k


class ReciprocalBlock(Gathering):
    """Pre-norm block; its state is the Answer of the block below."""

    def __init__(self, old: Block, *, attn: ReciprocalAttention, mlp: ReciprocalMLP):
        super().__init__()
        self.norm_1, self.attn, self.norm_2, self.mlp = old.norm_1, attn, old.norm_2, mlp

    def forward(self, h: Tensor, state: Any, cache: Latents | None = None) -> tuple[Tensor, Any]:
        answer = Answer(None, None) if state is None else Answer(*state)
        y, probs, k = self.attn.attend(self.norm_1(h), answer, cache)
        h = h + y
        m, answer = self.mlp(self.norm_2(h), probs, k, cache)
        return h + m, tuple(answer)


class ReciprocalMLP(nn.Module):
    """The base's MLP with up to three mechanisms on its hidden channels, in this order:

    u += s alpha latents to hidden   (3; and hidden to latents, sent to the next block's keys)
    u += s alpha (W u) X             (2; W: this block's attention weights, sparse and normalised, no gradient)
    gate of the next block's heads   (1; from the running mean of u over the tokens so far)
    """

    s: Tensor  # activation, moved by the schedule
    idle: nn.Module

    def __init__(
        self,
        old: MLP,
        *,
        gate: HeadGate | None,
        cross: CrossToken | None,
        coupler: Coupler | None,
        dropout: float,
    ):
        super().__init__()
        self.up, self.act, self.down, self.dropout = old.up, old.act, old.down, dropout
        self.gate, self.cross, self.coupler = gate, cross, coupler
        if cross or coupler:
            self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        if hasattr(self, "s"):
            self.s.fill_(1.0)

    def forward(self, x: Tensor, probs: Tensor | None, k: Tensor, cache: Latents | None) -> tuple[Tensor, Answer]:
        """x [B, S, C], probs [B, H, S, T] and keys k [B, 1, S, L] of this block's attention -> [B, S, C], an answer."""
        u = self.act(self.up(x))  # [B, S, F]
        back = None
        if self.coupler is not None:
            enriched, back = self.coupler(u, k[:, 0].detach())
            u = u + (self.s * enriched).to(u.dtype)
        if self.cross is not None:
            assert probs is not None, "mechanism 2 mixes by attention weights, and its core kept none"
            u = u + (self.s * self.cross(u, probs, cache)).to(u.dtype)
        gate = None if self.gate is None else self.gate(u, cache)
        return F.dropout(self.down(u, None), self.dropout, self.training), Answer(gate, back)


class HeadGate(nn.Module):
    """Mechanism 1: u [B, S, F] -> g [B, H, S, 1], of the mean over the tokens so far; g starts at sigmoid(2)."""

    def __init__(self, spec: ModelSpec, width: int):
        super().__init__()
        self.narrow = Linear(spec.n_hidden, width, bias=True)
        self.heads = RaisedLinear(width, spec.n_head, bias=True)

    def forward(self, u: Tensor, cache: Latents | None) -> Tensor:
        x = self.narrow(u)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        before = 0 if cache is None else cache.size - x.shape[1]
        total = x.cumsum(1) + (0.0 if cache is None else cache.running)
        if cache is not None:
            cache.running = total[:, -1:]
        n = torch.arange(before + 1, before + 1 + x.shape[1], device=x.device, dtype=x.dtype)
        return self.heads((total / n[:, None]).to(u.dtype)).sigmoid().mT[..., None]


class RaisedLinear(Linear):
    """A linear layer with biases initialised to 2."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        if self.bias is not None:
            nn.init.constant_(self.bias, _RAW_BIAS)


class CrossToken(nn.Module):
    """Mechanism 2: alpha (W u) X, X [F, F], or through `width` channels: the tokens' hidden channels, mixed as
    attention mixes values.

    W is the mean over heads of the attention weights, without gradient; `sparse` keeps the k largest of a row, or the
    weights from tau times the row's root mean square over the visible keys on (as run, over all keys).
    """

    def __init__(self, spec: ModelSpec, options: CrossSection, *, as_run: bool):
        super().__init__()
        self.options, self.as_run = options, as_run
        inner = options.width or spec.n_hidden
        self.narrow = Linear(spec.n_hidden, inner, bias=False) if options.width else None
        self.proj = Linear(inner, spec.n_hidden, bias=False)
        self.alpha = nn.Parameter(torch.empty(1))
        self.inner = inner

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.alpha, self.options.alpha)

    def forward(self, u: Tensor, probs: Tensor, cache: Latents | None) -> Tensor:
        z = u if self.narrow is None else self.narrow(u)
        if cache is not None:
            z = cache.hidden.append(z[:, None])[0][:, 0]  # of all T tokens
        return self.alpha * self.proj(self.weights(probs.detach()).to(z.dtype) @ z)

    def weights(self, probs: Tensor) -> Tensor:
        """probs [B, H, S, T] -> mixing weights of each of the S tokens over the T tokens, [B, S, T]."""
        w = probs.mean(1)
        o = self.options
        if o.sparse == "topk":
            best = w.topk(min(o.k, w.shape[-1]))
            w = torch.zeros_like(w).scatter(-1, best.indices, best.values)
        elif o.sparse == "rms":
            total = w.shape[-1]
            n = total if self.as_run else torch.arange(total - w.shape[1] + 1, total + 1, device=w.device)[:, None]
            floor = o.tau * (w.square().sum(-1, keepdim=True) / n).clamp(min=1e-12).sqrt()
            w = w * (w >= floor)
        if o.normalize and not (self.as_run and o.sparse == "none"):
            w = w / w.sum(-1, keepdim=True).clamp(min=1e-8)
        return w

    def probes(self) -> dict[str, Tensor]:
        return {"cross alpha": self.alpha}

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * spec.block_size * self.inner


class Coupler(nn.Module):
    """Mechanism 3: latents [B, S, L] to hidden channels [B, S, F] times alpha, and hidden channels to latents.

    tied_transpose: one matrix [F, L] for both; untied: two; per_head_scalar: two, and each of H equal parts of their
    outputs has its own scale.
    """

    decayed = ("to_hidden", "to_latent")

    def __init__(self, spec: ModelSpec, latent: int, *, alpha: float, tying: str, answers: bool):
        super().__init__()
        self.start, self.tying, self.answers, self.n_head = alpha, tying, answers, spec.n_head
        self.alpha = nn.Parameter(torch.empty(1))
        self.to_hidden = nn.Parameter(torch.empty(spec.n_hidden, latent))
        two = tying != "tied_transpose" and answers
        self.to_latent = nn.Parameter(torch.empty(latent, spec.n_hidden)) if two else None
        scaled = tying == "per_head_scalar"
        self.hidden_scale = nn.Parameter(torch.empty(spec.n_head)) if scaled else None
        self.latent_scale = nn.Parameter(torch.empty(spec.n_head)) if scaled and answers else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.alpha, self.start)
        for weight in (self.to_hidden, self.to_latent):
            if weight is not None:
                nn.init.normal_(weight, std=0.02, generator=generator)
        for scale in (self.hidden_scale, self.latent_scale):
            if scale is not None:
                nn.init.ones_(scale)

    def forward(self, u: Tensor, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        enriched = self._scaled(F.linear(latents, self.to_hidden), self.hidden_scale)
        if not self.answers:
            return self.alpha * enriched, None
        back = u @ self.to_hidden if self.to_latent is None else F.linear(u, self.to_latent)
        return self.alpha * enriched, self._scaled(back, self.latent_scale)

    def _scaled(self, x: Tensor, scale: Tensor | None) -> Tensor:
        return x if scale is None else x * scale.repeat_interleave(x.shape[-1] // self.n_head)

    def probes(self) -> dict[str, Tensor]:
        return {"coupler alpha": self.alpha}

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * self.to_hidden.numel() * (2 if self.answers else 1)
