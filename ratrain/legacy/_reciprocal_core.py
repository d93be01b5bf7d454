"""The attention core of the old reciprocal studies: explicit scores, with optional changes to scores, weights and
output.

Shape letters: B batch, T tokens, S newest tokens, H heads, D head_dim, L channels that score.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratrain.config.schema import ModelSpec
from ratrain.legacy._latent import HeadMaps
from ratrain.legacy._sections import CrossTokenSection
from ratrain.model.cache import PLAIN, KVCache, ValueCode
from ratrain.model.gpt2 import Core
from ratrain.model.scores import causal, scores_of

_RAW_BIAS = 2.0  # gates start at sigmoid(2) = 0.881


class Mixed(NamedTuple):
    """Output of a core."""

    y: Tensor  # [B, H, S, D]
    probs: Tensor | None  # [B, H, S, T], as applied to the values; None from the fused call


class Latents(KVCache):
    """Cache of the core's input keys and values, the last queries, and the past state of the MLP's mechanisms."""

    def __init__(self, length: int, code: ValueCode = PLAIN):
        super().__init__(length, code)
        self.recent: Tensor | None = None  # [B, H, <= window, L]
        self.hidden = KVCache(length)  # of mechanism 2, [B, 1, T, F]
        self.running: Tensor | float = 0.0  # of mechanism 1, [B, 1, width]

    @property
    def nbytes(self) -> tuple[int, int]:
        keys, values = super().nbytes
        recent = 0 if self.recent is None else self.recent.numel() * self.recent.element_size()
        return keys + recent, values + sum(self.hidden.nbytes)

    def recall(self, q: Tensor, window: int) -> Tensor:
        """Returns the queries of up to `window` tokens before the newest, followed by the newest, q [B, H, S, L]."""
        seen = q if self.recent is None else torch.cat([self.recent, q], dim=2)
        self.recent = seen[:, :, -window:]
        return seen


class ReciprocalCore(Core):
    """Attention with the transpose of the scores added in a band of `window` tokens, times a learned alpha:

        score_ij += s alpha q_j . k_i scale,  0 <= i - j <= window

    `maps` compute queries and values per head from latent ones. `answers`: outputs of the MLP of the block below may
    gate the heads ("gate") and be added to the latent keys ("back"), with a learned weight each.
    """

    s: Tensor  # activation, moved by the schedule
    alpha: nn.Parameter | None  # [1] each
    gate_alpha: nn.Parameter | None
    back_alpha: nn.Parameter | None
    scale: float
    idle: nn.Module

    def __init__(
        self,
        spec: ModelSpec,
        *,
        alpha: float,
        window: int,
        maps: HeadMaps | None = None,
        latent: int | None = None,
        cross_token: CrossTokenGate | None = None,
        answers: dict[str, float] | None = None,
        hidden: int = 0,
    ):
        super().__init__(spec.dropout, scale=(latent or spec.head_dim) ** -0.5)
        self.starts = {"alpha": alpha, **{f"{name}_alpha": start for name, start in (answers or {}).items()}}
        self.starts = {name: start for name, start in self.starts.items() if start}
        for name in ("alpha", "gate_alpha", "back_alpha"):
            self.register_parameter(name, nn.Parameter(torch.empty(1)) if name in self.starts else None)
        self.window, self.latent, self.hidden = window, latent, hidden
        self.maps, self.cross_token = maps, cross_token
        self.on_weights = cross_token is not None and cross_token.on_weights
        self.is_looked_into = bool(self.starts or cross_token or hidden)  # else one fused call suffices
        if self.starts or cross_token:
            self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for name, start in self.starts.items():
            nn.init.constant_(getattr(self, name), start)
        if hasattr(self, "s"):
            self.s.fill_(1.0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache=None) -> Tensor:
        return self.mix(q, k, v, cache).y

    def answered(self, k: Tensor, back: Tensor | None) -> Tensor:
        """Adds the latents of the block below [B, S, L], if any, to the latent keys k [B, 1, S, L]."""
        if back is None or self.back_alpha is None:
            return k
        return (k + self.s * self.back_alpha * back[:, None]).to(k.dtype)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, cache: Latents | None = None, gate: Tensor | None = None) -> Mixed:
        """q, k, v of the newest S tokens, gate [B, H, S, 1] from the block below or None."""
        q = q if self.maps is None else self.maps.queries(q)
        recent = q if cache is None or self.alpha is None else cache.recall(q, self.window)
        k, v = (k, v) if cache is None else cache.append(k, v)
        v = v if self.maps is None else self.maps.values(v)
        if not self.is_looked_into:
            return Mixed(self.attend(q, *(t.expand(-1, q.shape[1], -1, -1) for t in (k, v))), None)
        scores = scores_of(q, k, scale=self.scale)  # [B, H, S, T]
        seen = causal(scores)
        if self.alpha is not None:
            scores = scores + self.s * self.alpha * self._band(self.reverse(recent, q, k, scores))
        probs = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        if gate is not None and self.gate_alpha is not None:
            probs = probs * (1 - self.s * self.gate_alpha * (1 - gate))
        factor = None if self.cross_token is None else self.cross_token(probs, seen, self.s)
        if factor is not None and self.on_weights:
            probs, factor = probs * factor, None
        probs = F.dropout(probs, self.dropout, self.training)
        y = probs.to(v.dtype) @ v
        return Mixed(y if factor is None else (y * factor).to(y.dtype), probs)

    def reverse(self, recent: Tensor, q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
        """q_j . k_i, scaled, for the newest S rows i and all T columns j; queries are `recent`, the last n."""
        new, n, total = q.shape[2], recent.shape[2], scores.shape[-1]
        if new == total:
            return scores.mT
        rows = scores_of(recent, k[:, :, -new:], scale=self.scale).mT  # [B, H, S, n]
        return F.pad(rows, (total - n, 0))

    def _band(self, x: Tensor) -> Tensor:
        """Sets x [..., S, T] to 0 outside of 0 <= i - j <= window."""
        inside = causal(x).triu(x.shape[-1] - x.shape[-2] - self.window)
        return x.masked_fill(~inside, 0)

    def new_cache(self, length: int, code: ValueCode = PLAIN) -> Latents:
        return Latents(length, code)

    def probes(self) -> dict[str, Tensor]:
        return {name.replace("_", " "): getattr(self, name) for name in self.starts}

    def flops_per_token(self, spec: ModelSpec) -> int:
        scoring = spec.n_embd if self.latent is None else spec.n_head * self.latent
        return 2 * spec.block_size * (scoring + spec.n_embd)

    def kv_per_token(self, spec: ModelSpec) -> tuple[int, int]:
        width = self.latent or spec.n_embd
        return width, width + self.hidden


class RankOneCore(ReciprocalCore):
    """The band of the reference when its coupling was not 0: sums in place of products, in the scores' own direction.

    score_ij += alpha (sum_d q_id) (sum_d k_jd) scale
    """

    def reverse(self, recent: Tensor, q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
        return (q.sum(-1)[..., None] * k.sum(-1)[:, :, None] * self.scale).to(scores.dtype)


class CrossTokenGate(nn.Module):
    """RA-CT: a gate per head and token, from one number of each row of attention.

        G = sigmoid(stat w_h + b_h);  y <- y (1 - alpha + alpha G)

    `stat`: the mass of the k largest, the largest, the entropy, or the root mean square over the visible keys. As run,
    the gate on the output was G itself, and the mean square was over all keys of the row.
    """

    def __init__(self, spec: ModelSpec, options: CrossTokenSection, *, as_run: bool):
        super().__init__()
        self.options, self.as_run = options, as_run
        self.on_weights = options.apply == "weights"
        self.weight = nn.Parameter(torch.empty(spec.n_head))
        self.bias = nn.Parameter(torch.empty(spec.n_head))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.weight)
        nn.init.constant_(self.bias, _RAW_BIAS)

    def forward(self, probs: Tensor, seen: Tensor, s: Tensor) -> Tensor:
        """probs [B, H, S, T], seen [S, T], the activation s -> a factor [B, H, S, 1]."""
        stat = self.statistic(probs.detach() if self.options.detach else probs, seen)
        stat = stat.mean(1, keepdim=True) if self.options.head_average else stat
        gate = (stat * self.weight[:, None] + self.bias[:, None]).sigmoid()  # [B, H, S]
        alpha = 1.0 if self.as_run and not self.on_weights else self.options.alpha
        return (1 + s * alpha * (gate - 1))[..., None]

    def statistic(self, probs: Tensor, seen: Tensor) -> Tensor:  # [B, H, S, T] -> [B, H, S]
        match self.options.stat:
            case "topk":
                return probs.topk(min(self.options.k, probs.shape[-1])).values.sum(-1)
            case "max":
                return probs.amax(-1)
            case "entropy":
                return -(probs * probs.clamp(min=1e-12).log()).sum(-1)
            case "rms":
                n = probs.shape[-1] if self.as_run else seen.sum(-1)
                return (probs.square().sum(-1) / n).clamp(min=1e-24).sqrt()  # a root of 0 has no slope

    def probes(self) -> dict[str, Tensor]:
        return {"RA-CT weight": self.weight, "RA-CT bias": self.bias}
