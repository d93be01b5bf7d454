"""GPT-2, in the usual order, with a named seam for every part that a mechanism may replace.

Shape letters: B batch, T tokens, C channels, H heads, D head_dim, F hidden channels of the MLP, V vocabulary.
Constructors only declare; `reset_parameters(generator)` fills every parameter and buffer, so that a model is built on
the meta device and initialised after allocation. An unclaimed seam returns its argument and adds nothing to the graph.
The parts of `manifests/modern.toml` (RoPE, RMS norms, QK-norm, squared ReLU) use the same seams.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import INIT_STD, ModelSpec
from ratrain.kernels import bias_gradient
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy
from ratrain.model.backends import causal_attention
from ratrain.model.cache import PLAIN, KVCache, ValueCode, new_cache, recall
from ratrain.model.norm import norm_of
from ratrain.model.parametrisation import Factors
from ratrain.model.rotary import Rotary


class Linear(nn.Module):
    """x @ weight.T + bias; weights N(0, std^2), bias 0.

    `std` is `init_std` of the model; projections into the residual stream divide it by sqrt(2 n_layer).
    """

    decayed = ("weight",)
    fan_in: Mapping[str, int | None] = MappingProxyType({"weight": 1})
    product: Callable[..., Tensor] = staticmethod(F.linear)  # of x, weight and bias; replaced in the MLPs under fp8

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float = INIT_STD):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=self.std, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *, detached: bool = False) -> Tensor:
        """Applies the layer; with `detached` the bias gets its gradient from the next layer instead."""
        bias = self.bias.detach() if detached and self.bias is not None else self.bias
        return self.product(x, self.weight, bias)


class QKV(Linear):
    """The packed projection to queries, keys and values, heads contiguous inside each third."""

    def __init__(self, n_embd: int, n_head: int, *, bias: bool, std: float = INIT_STD):
        super().__init__(n_embd, 3 * n_embd, bias=bias, std=std)
        self.n_head = n_head

    def forward(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Projects x [B, T, C], with gate [H, D] or None -> q, k, v, each [B, H, T, D], q scaled by the gate.

        The gate multiplies rows of the weight, not tokens: it costs nothing per token.
        """
        weight, bias = self.weight, self.bias
        if gate is not None:
            rows = torch.cat([gate.flatten(), gate.new_ones(2 * gate.numel())])  # [3C]
            weight = (weight * rows[:, None]).to(weight.dtype)  # an fp32 gate must not widen bf16 weights
            bias = None if bias is None else (bias * rows).to(bias.dtype)
        if bias is not None and bias_gradient.fuses(x):
            return bias_gradient.split_heads(F.linear(x, weight, bias.detach()), bias, self.n_head)
        q, k, v = F.linear(x, weight, bias).view(*x.shape[:2], 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


class NormedQKV(QKV):
    """Queries and keys of unit root mean square per head, without a gain (QK-norm, arXiv:2010.04245)."""

    def __init__(self, n_embd: int, n_head: int, *, bias: bool, std: float, eps: float):
        super().__init__(n_embd, n_head, bias=bias, std=std)
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().forward(x, None)
        q, k = (F.rms_norm(t, t.shape[-1:], eps=self.eps) for t in (q, k))
        # after the norm, which would cancel a gate on the rows
        return q if gate is None else (q * gate[:, None]).to(q.dtype), k, v


class Down(Linear):
    """The MLP's output projection; a gate [F] scales its columns, once per weight."""

    def forward(self, h: Tensor, gate: Tensor | None) -> Tensor:
        weight = self.weight if gate is None else (self.weight * gate).to(self.weight.dtype)
        return self.product(h, weight, self.bias)


class Embedding(nn.Module):
    """A table of rows [n, C]; N(0, std^2)."""

    fan_in: Mapping[str, int | None] = MappingProxyType({"weight": None})  # rows are picked, not summed

    def __init__(self, n_row: int, n_embd: int, *, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(n_row, n_embd))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=self.std, generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight)


class Position(Embedding):
    """Learned absolute positions, added to the token rows."""

    def forward(self, h: Tensor, start: int) -> Tensor:  # [B, T, C] -> [B, T, C]
        return h + self.weight[start : start + h.shape[1]]


class NoGate(nn.Module):
    """An unclaimed gate seam: no scaling."""

    def forward(self) -> Tensor | None:
        return None


class Same(nn.Module):
    """An unclaimed seam: returns the first argument."""

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        return x


class SamePair(nn.Module):
    """An unclaimed position seam of attention: returns queries and keys unchanged."""

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Returns q and k [B, H, S, D] of the tokens at positions start.. unchanged."""
        return q, k


class Local(nn.Module):
    """An unclaimed local seam: returns attention's input unchanged.

    A mechanism that mixes a token with a few earlier ones goes here: `reach` is their number, and decoding caches them.
    """

    reach = 0

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Maps x [B, S, C] and the previous `reach` inputs [B, reach, C], zeros before the first token -> [B, S, C]."""
        return x


class Value(nn.Module):
    """An unclaimed value seam: returns the values unchanged. A patch may read and write the state between layers here.

    A lossy replacement may reduce the cache: it defines `code()`, a ValueCode whose decompress(compress(v)) equals its
    output for v, and `kept_channels`, the number of cached channels.
    """

    def forward(self, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Maps v [B, H, T, D] and the state of the layer below (None for the first layer) -> v and the next state."""
        return v, state


class Core(nn.Module):
    """Causal attention, scores scaled by `scale` (None: by one over the root of q's channels)."""

    def __init__(self, dropout: float, *, scale: float | None = None):
        super().__init__()
        self.dropout, self.scale = dropout, scale
        self.backends: tuple[str, ...] = ()  # tried in this order; empty: torch chooses

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:
        """Attends with q, k, v [B, H, S, D] of the newest S tokens -> y like q; older tokens are in the cache.

        A patch that attends to more than k and v caches it as well, and counts it in `kv_per_token`.
        """
        if cache is None:
            return self.attend(q, k, v)
        k, codes = cache.store(k, v)
        return cache.code.unfold(self.attend(q, k, cache.code.fold(codes))).to(q.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends from q [B, H, S, D], the last S of T positions, to k, v [B, H, T, D] -> [B, H, S, D].

        This must be a mixture over tokens with equal weights for all channels of v; anything more belongs in `forward`.
        """
        dropout = self.dropout if self.training else 0.0
        if q.shape[2] == k.shape[2]:
            return causal_attention(q, k, v, backends=self.backends, dropout=dropout, scale=self.scale)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=self.scale)

    def new_cache(self, length: int, code: ValueCode = PLAIN) -> Any:
        """Creates an empty cache for `length` tokens, passed to `forward` in decoding.

        It has `size`, the number of cached tokens, and `code`, the storage format of the values.
        """
        return KVCache(length, code)

    def flops_per_token(self, spec: ModelSpec) -> int:
        """Returns FLOPs of the two products over a full context; by convention causality does not halve them."""
        return 4 * spec.block_size * spec.n_embd

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns the cached elements per token of context, as (keys, values)."""
        return spec.n_embd, spec.n_embd


class Attention(nn.Module):
    """Causal self-attention; its seams are local, qkv, score, pos, value, core, blend and proj."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.local = Local()
        std = spec.init_std
        if spec.qk_norm == "rms":
            self.qkv = NormedQKV(spec.n_embd, spec.n_head, bias=spec.bias, std=std, eps=spec.norm_eps)
        else:
            self.qkv = QKV(spec.n_embd, spec.n_head, bias=spec.bias, std=std)
        self.score = NoGate()
        self.pos = Rotary(spec.block_size, spec.head_dim) if spec.pos == "rope" else SamePair()
        self.value = Value()
        self.core = Core(spec.dropout, scale=spec.score_scale)
        self.blend = Same()
        self.proj = Linear(spec.n_embd, spec.n_embd, bias=spec.bias, std=spec.residual_std)
        self.dropout = spec.dropout

    def forward(self, x: Tensor, state: Tensor | None, cache=None) -> tuple[Tensor, Tensor | None]:
        """Maps x [B, T, C] and the state from the layer below -> y [B, T, C] and the state for the next layer."""
        # here and below: an fp32 gate of a patch must not widen a bf16 stream
        x = self.local(x, recall(cache, "local", x, self.local.reach)).to(x.dtype) if self.local.reach else x
        q, k, v = self.qkv(x, self.score())  # each [B, H, T, D]
        dtype = q.dtype
        q, k = (t.to(dtype) for t in self.pos(q, k, 0 if cache is None else cache.size))
        raw, (v, state) = v, self.value(v, state)
        v = v.to(dtype)
        given = v if cache is None or cache.code is PLAIN else raw  # the cache compresses raw values itself
        y = self.blend(self.core(q, k, given, cache), v, x).to(dtype).transpose(1, 2).flatten(2)
        return F.dropout(self.proj(y), self.dropout, self.training), state


class Activation(nn.Module):
    """GELU, exact or in the tanh form of the released GPT-2 weights; or ReLU squared."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def forward(self, h: Tensor) -> Tensor:
        if self.form == "relu2":
            return F.relu(h).square()
        return F.gelu(h, approximate="tanh" if self.form == "gelu_tanh" else "none")

    def after(self, up: Linear, x: Tensor) -> Tensor:
        """Computes self(up(x)), x [B, T, C] -> [B, T, F]; on a GPU, GELU's backward includes up's bias."""
        if up.bias is None or self.form == "relu2" or not bias_gradient.fuses(x):
            return self(up(x))
        return bias_gradient.biased_gelu(up(x, detached=True), up.bias, tanh=self.form == "gelu_tanh")


class MLP(nn.Module):
    """Two linear layers around an activation; its seams are up, act, mix, gate and down.

    A replacement that mixes tokens sets `caches`, and gets the layer's cache as a second argument.
    """

    caches = False

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.up = Linear(spec.n_embd, spec.n_hidden, bias=spec.bias, std=spec.init_std)
        self.act = Activation(spec.act)
        self.mix = Same()
        self.gate = NoGate()
        self.down = Down(spec.n_hidden, spec.n_embd, bias=spec.bias, std=spec.residual_std)
        self.dropout = spec.dropout

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C] -> [B, T, C]
        # a patch may have replaced up or act
        plain = type(self.up) is Linear and type(self.act) is Activation
        h = self.act.after(self.up, x) if plain else self._hidden(x)  # [B, T, F]
        h = self.mix(h, x).to(h.dtype)
        return F.dropout(self.down(h, self.gate()), self.dropout, self.training)

    def _hidden(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.act(h).to(h.dtype)


class Block(nn.Module):
    """Pre-norm transformer block; beside the stream it passes on a state, None unless a patch sets it."""

    def __init__(self, spec: ModelSpec, layer: int):
        super().__init__()
        self.layer = layer  # for patches that differ between layers
        self.branch = 1 / spec.depth_growth  # factor on what attention and MLP add to the stream
        self.norm_1 = norm_of(spec)
        self.attn = Attention(spec)
        self.norm_2 = norm_of(spec)
        self.mlp = MLP(spec)

    def forward(self, h: Tensor, state: Tensor | None, cache=None) -> tuple[Tensor, Tensor | None]:
        """Maps h [B, T, C] and the state from the layer below -> both for the layer above."""
        y, state = self.attn(self.norm_1(h).to(h.dtype), state, cache)
        h = h + self._scaled(y).to(h.dtype)
        x = self.norm_2(h).to(h.dtype)
        y = self.mlp(x, cache) if getattr(self.mlp, "caches", False) else self.mlp(x)
        return h + self._scaled(y).to(h.dtype), state

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self.branch == 1 else y * self.branch


class GPT2(nn.Module):
    """The decoder. Unless untied, the token table is also the head: one parameter and one key in checkpoints."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        # set when the model is built
        self.claimed: dict[str, str] = {}  # patch name by site
        self.priced: list[Any] = []  # modules of patches that define `penalty()`
        self.fp8 = False  # whether the head's products are in 8 bits
        self.z_loss = 0.0  # weight of the squared log-partition in the gradient of the loss
        self.base_names: dict[str, str] = {}  # base name by current name: a patch may move a base module
        self.factors: Mapping[str, Factors] = {}  # by parameter; empty under the standard parametrisation
        self.read_scale = 1 / spec.width_growth  # factor on the states that the head reads
        std = spec.init_std
        self.wte = Embedding(spec.padded_vocab, spec.n_embd, std=std)
        self.pos = Position(spec.block_size, spec.n_embd, std=std) if spec.pos == "learned" else Same()
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.n_layer))
        self.norm = norm_of(spec)
        untied = spec.head == "untied"
        self.unembed = Linear(spec.n_embd, spec.padded_vocab, bias=False, std=std) if untied else None

    @property
    def head_weight(self) -> Tensor:
        """The unembedding rows [V, C]."""
        return (self.wte if self.unembed is None else self.unembed).weight

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embeds tokens [B, T] at positions start.. -> [B, T, C]."""
        return F.dropout(self.pos(self.wte(tokens), start), self.spec.dropout, self.training)

    def head(self, h: Tensor, targets: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """Computes the loss in nats of h [B, T, C] against targets [B, T], mean or per target; -1 is ignored."""
        z_loss = self.z_loss if self.training else 0.0
        options: Any = {"n_class": self.spec.vocab_size, "z_loss": z_loss, "reduction": reduction, "fp8": self.fp8}
        return linear_cross_entropy(self._read(h), self.head_weight, targets, **options)

    def forward(self, tokens: Tensor, targets: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """Computes mean cross-entropy in nats, 0-d, of tokens and targets [B, T] int64; with "none" each, [B, T]."""
        h, state = self.embed(tokens), None
        for block in self.blocks:
            h, state = block(h, state)
        return self._priced(self.head(h, targets, reduction))

    def _priced(self, loss: Tensor) -> Tensor:
        """Adds the gradients of the patches' penalties to the loss, not their values: the loss stays comparable."""
        for penalty in (priced.penalty() for priced in self.priced) if self.training else ():
            loss = loss + (penalty - penalty.detach())
        return loss

    def new_caches(self) -> list[Any]:
        """Creates an empty KV cache for each layer."""
        return [new_cache(block, self.spec.block_size) for block in self.blocks]

    def logits(self, tokens: Tensor, caches=None, start: int = 0) -> Tensor:
        """Computes next-token logits, [B, T] -> [B, T, vocab_size]; `caches` holds one KV cache per layer."""
        return self.unembedded(self.states(tokens, caches, start))

    def states(self, tokens: Tensor, caches=None, start: int = 0) -> Tensor:
        """Computes the normed states that the head reads, [B, T] -> [B, T, C]; arguments as for `logits`."""
        h, state = self.embed(tokens, start), None
        for layer, block in enumerate(self.blocks):
            h, state = block(h, state, None if caches is None else caches[layer])
        return self._read(h)

    def _read(self, h: Tensor) -> Tensor:
        h = self.norm(h)
        return h if self.read_scale == 1 else h * self.read_scale

    def unembedded(self, h: Tensor) -> Tensor:
        """Computes the logits of normed states, [..., C] -> [..., vocab_size]."""
        return F.linear(h, self.head_weight[: self.spec.vocab_size])
