"""Parts of a block of the lens studies other than its scores: compressed keys and values, an MLP context, a route.

Shape letters: B batch, T tokens, C channels, H heads, D head_dim, F hidden channels, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.legacy._gathered import Gathering
from ratrain.model.gpt2 import MLP, Attention, Block, Linear
from ratrain.model.mechanism import Mechanism


class CompressedQKV(nn.Module):
    """Queries as in the base, keys and values through R channels: up (down x).

    Both are initialised to the nearest matrix of rank R to the base's own initialisation, by its singular values.
    """

    decayed = ("q", "k_down", "k_up", "v_down", "v_up")

    def __init__(self, spec: ModelSpec, rank: int, *, std: float, bias: bool):
        super().__init__()
        width = spec.n_embd
        self.n_head, self.rank, self.std = spec.n_head, rank, std
        self.q = nn.Parameter(torch.empty(width, width))
        self.k_down, self.v_down = (nn.Parameter(torch.empty(rank, width)) for _ in range(2))
        self.k_up, self.v_up = (nn.Parameter(torch.empty(width, rank)) for _ in range(2))
        self.bias = nn.Parameter(torch.empty(3 * width)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        width = self.q.shape[0]
        q, k, v = torch.empty(3, width, width).normal_(std=self.std, generator=generator)
        self.q.copy_(q)
        for weight, down, up in ((k, self.k_down, self.k_up), (v, self.v_down, self.v_up)):
            left, values, right = torch.linalg.svd(weight)
            root = values[: self.rank].sqrt()
            down.copy_(root[:, None] * right[: self.rank])
            up.copy_(left[:, : self.rank] * root)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C], gate [H, D] or None -> q, k, v, each [B, H, T, D], q scaled by the gate."""
        q_bias, k_bias, v_bias = (None,) * 3 if self.bias is None else self.bias.chunk(3)
        q = F.linear(x, self.q, q_bias)
        k = F.linear(F.linear(x, self.k_down), self.k_up, k_bias)
        v = F.linear(F.linear(x, self.v_down), self.v_up, v_bias)
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in (q, k, v))
        return q if gate is None else (q * gate[:, None]).to(q.dtype), k, v

    def flops_per_token(self, spec: ModelSpec) -> int:
        return 2 * sum(getattr(self, name).numel() for name in self.decayed)


class LensMLP(nn.Module):
    """The base's MLP, with an optional summary of attention's output blended into its hidden channels:

    t <- (1 - beta) t + beta c,  beta = alpha (learned, kept in 0..1)
    """

    def __init__(self, old: MLP, *, context: Context | None, dropout: float):
        super().__init__()
        self.up, self.act, self.down, self.context, self.dropout = old.up, old.act, old.down, context, dropout

    def forward(self, x: Tensor, attended: Tensor, route: Tensor | None) -> Tensor:
        """x and attention's output [B, T, C], and the route [1] -> [B, T, C]."""
        t = self.act(self.up(x))
        if self.context is not None:
            t = self.context(t, attended, route)
        return F.dropout(self.down(t, None), self.dropout, self.training)


class Context(Mechanism):
    """c = up (down a) of attention's output a, without gradient to a; with a `conductor` only while the route to
    attention is below one half."""

    def __init__(self, spec: ModelSpec, rank: int, *, start: float, conductor: bool, drawn: type[Linear]):
        super().__init__()
        self.start, self.conductor = start, conductor
        self.down = drawn(spec.n_embd, rank, bias=False)
        self.up = drawn(rank, spec.n_hidden, bias=False)
        self.alpha = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.alpha, self.start)
        super().reset_parameters(generator)

    def forward(self, t: Tensor, attended: Tensor, route: Tensor | None) -> Tensor:
        beta = self.s * self.alpha.clamp(0, 1)
        if self.conductor and route is not None:
            beta = beta * (route.detach() < 0.5)  # a product, not a branch: one graph on either side
        return (t + beta * (self.up(self.down(attended.detach())) - t)).to(t.dtype)

    def probes(self) -> dict[str, Tensor]:
        return {"context alpha": self.alpha}


class Route(Mechanism):
    """g, attention's share in a block's update: sigmoid(raw + (end - start) anneal), initially sigmoid(start)."""

    anneal: Tensor  # 0..1, set by its own schedule

    def __init__(self, *, start: float, end: float):
        super().__init__()
        self.start, self.end = start, end
        self.raw = nn.Parameter(torch.empty(1))
        self.register_buffer("anneal", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.raw, self.start)
        super().reset_parameters(generator)
        self.anneal.fill_(1.0)

    def forward(self) -> Tensor:  # [1]
        return (self.raw + (self.end - self.start) * self.anneal).sigmoid()

    def probes(self) -> dict[str, Tensor]:
        return {"route": self()}


class LensBlock(Gathering):
    """h + w_a a + w_m m: attention a, and the MLP m of h + a (or none); with a route w_a = g and w_m = 1 - g."""

    def __init__(self, old: Block, *, attn: Attention, mlp: LensMLP | None, route: Route | None):
        super().__init__()
        self.norm_1, self.attn = old.norm_1, attn
        self.norm_2 = old.norm_2 if mlp else None
        self.mlp, self.route = mlp, route

    def forward(self, h: Tensor, state: Any, cache: Any = None) -> tuple[Tensor, Any]:
        a, state = self.attn(self.norm_1(h), state, cache)
        if self.mlp is None or self.norm_2 is None:
            return h + a, state
        route = None if self.route is None else self.route()
        m = self.mlp(self.norm_2(h + a), a, route)
        if self.route is None or route is None:
            return h + a + m, state
        to_attention, to_mlp = 1 + self.route.s * (route - 1), 1 - self.route.s * route
        return h + (to_attention * a + to_mlp * m).to(h.dtype), state


def attention_of(old: Attention, spec: ModelSpec, **parts: nn.Module) -> Attention:
    """Returns the base's attention with some parts replaced; `old` is not modified."""
    attn = Attention(spec)
    for name, part in old.named_children():
        setattr(attn, name, parts.get(name, part))
    return attn
