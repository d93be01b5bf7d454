"""Computes the logits of an old checkpoint from its own tensors: the reference's forward pass in evaluation.

Only to hold a converted model against. A single pass, so that what a block's MLP sent to the next pass is not there.
Shape letters: B batch, T tokens, C channels, H heads, D head_dim, L latent channels, F hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def old_logits(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], tokens: Tensor, *, n_head: int, route: bool, rank: int
) -> Tensor:
    """tokens [B, T] -> [B, T, rows of the table], in float64. `rank`: the channels of unified RA's second gate."""
    top = _Part(weights, "transformer.")
    h = F.embedding(tokens, top["wte.weight"]) + top["wpe.weight"][: tokens.shape[1]]
    layer = 0
    while f"h.{layer}.ln_1.weight" in top:
        block = top.at(f"h.{layer}.")
        if "attn.gates" in block:
            h = _lens_block(block, config, h, n_head, route=route)
        elif "attn.k_down.weight" in block:
            h = _latent_block(block, config, h, n_head)
        else:
            h = h + _series_attention(block.at("attn."), block.norm("ln_1", h), n_head, rank)
            h = h + _series_mlp(block.at("mlp."), block.norm("ln_2", h))
        layer += 1
    return F.linear(top.norm("ln_f", h), top["wte.weight"])


class _Part:
    """Tensors below a prefix, converted to float64 on access."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self.tensors, self.prefix = tensors, prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].double()

    def get(self, name: str, default: float | None = None) -> Any:
        found = self.tensors.get(self.prefix + name)
        return default if found is None else found.double()

    def at(self, name: str) -> _Part:
        return _Part(self.tensors, self.prefix + name)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self.get(f"{name}.bias"), 1e-5)


def _heads(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)  # [B, T, C] -> [B, H, T, D]


def _joined(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def _attended(scores: Tensor) -> Tensor:
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


def _series_attention(p: _Part, x: Tensor, n_head: int, rank: int) -> Tensor:
    q, k, v = (_heads(part, n_head) for part in p.linear("c_attn", x).chunk(3, dim=-1))
    if "w_std" in p:
        std, rec = (p[name].clamp(min=1e-8).sqrt().reshape(-1, 1, 1) for name in ("w_std", "w_rec"))
        scale = torch.cat([std.expand(-1, 1, q.shape[-1] - rank), rec.expand(-1, 1, rank)], dim=-1)
        q, k = q * scale, k * scale
    y = _attended(q @ k.mT * q.shape[-1] ** -0.5) @ v
    if "rwr_alpha" in p:
        own = p["rwr_alpha"].clamp(0, 0.5)[:, None, None]
        y = (1 - own) * y + own * v
    return p.linear("c_proj", _joined(y))


def _series_mlp(p: _Part, x: Tensor) -> Tensor:
    if "up_std.weight" not in p:
        return p.linear("c_proj", F.gelu(p.linear("c_fc", x)))
    std, rec = F.gelu(p.linear("up_std", x)), F.gelu(p.linear("up_low", x))
    rec = p.linear("mixer", rec) if "mixer.weight" in p else rec
    rec = rec * p.get("gate_alpha", 1.0)
    return p.linear("down", torch.cat([p["w_std"] * std, p["w_rec"] * rec], dim=-1))


# -- RA+MLA ---------------------------------------------------------------------------------------------------------


def _latent_block(block: _Part, config: Mapping[str, Any], h: Tensor, n_head: int) -> Tensor:
    p, m = block.at("attn."), block.at("mlp.")
    coupling = p.get("coupling_scale", 1.0)
    x = block.norm("ln_1", h)
    probs, y, latent = _latent_attention(p, config, x, n_head, coupling)
    h = h + p.linear("out_proj", _joined(y))
    u = F.gelu(m.linear("c_fc", block.norm("ln_2", h)))
    if "mlp_recip_alpha_mlp" in m:
        u = u + coupling * m["mlp_recip_alpha_mlp"] * _enriched(m.at("coupler."), latent, n_head)
    if "cross_proj.weight" in m:
        mixed = _sparse(probs.mean(1), config) @ u
        u = u + coupling * m["mlp_cross_alpha"] * m.linear("cross_proj", mixed)
    return h + m.linear("c_proj", u)


def _latent_attention(
    p: _Part, config: Mapping[str, Any], x: Tensor, n_head: int, coupling: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention weights [B, H, T, T], their mixture of values [B, H, T, D], and the latent keys [B, T, L]."""
    k, v = p.linear("k_down", x), p.linear("v_down", x)
    if "q_to_latent" in p:
        q = torch.einsum("bthd,hdl->bhtl", p.linear("q_proj", x).unflatten(-1, (n_head, -1)), p["q_to_latent"])
    else:
        q = p.linear("q_to_latent_shared", x)[:, None].expand(-1, n_head, -1, -1)
    scale = k.shape[-1] ** -0.5
    scores = q @ k[:, None].mT * scale
    alpha = p.get("ra_alpha", 0.0)
    if alpha > 0 and coupling > 0:
        at = torch.arange(x.shape[1])
        band = (at[:, None] - at).abs() <= int(config.get("ra_window", 64))
        sums = q.sum(-1)[..., None] * k.sum(-1)[:, None, None]  # the reference's einsum: two sums, not a product
        scores = scores + coupling * alpha * scale * sums * band
    probs = _attended(scores)
    if "ra_ct_scale" in p and config.get("ra_ct_apply", "output") == "weights":
        share = config.get("ra_ct_alpha", 0.2)
        probs = probs * (1 - share + share * _cross_token(p, config, probs))
    values = torch.einsum("btl,hld->bhtd", v, p["v_up"]) if "v_up" in p else p.linear("v_up_shared", v)[:, None]
    y = probs @ values
    if "ra_ct_scale" in p and config.get("ra_ct_apply", "output") == "output":
        y = y * _cross_token(p, config, probs)
    return probs, y, k


def _cross_token(p: _Part, config: Mapping[str, Any], probs: Tensor) -> Tensor:
    """RA-CT's gate [B, H, T, 1]."""
    mode = config.get("ra_ct_mode", "topk")
    if mode == "topk":
        stat = probs.sort(-1, descending=True).values[..., : int(config.get("ra_ct_k", 8))].sum(-1)
    elif mode == "max":
        stat = probs.max(-1).values
    elif mode == "entropy":
        stat = -(probs.clamp(min=1e-12).log() * probs).sum(-1)
    else:
        stat = probs.square().mean(-1).sqrt()
    if config.get("ra_ct_head_average"):
        stat = stat.mean(1, keepdim=True)
    return (stat * p["ra_ct_scale"][:, None] + p["ra_ct_bias"][:, None]).sigmoid()[..., None]


def _enriched(p: _Part, latent: Tensor, n_head: int) -> Tensor:
    """Mechanism 3: latent keys [B, T, L] -> hidden channels [B, T, F]."""
    matrix = p["W"] if "W" in p else p["attn_to_mlp.weight"]
    made = latent @ matrix.mT
    if "alpha_attn_to_mlp" in p:
        made = (made.unflatten(-1, (n_head, -1)) * p["alpha_attn_to_mlp"][:, None]).flatten(-2)
    return made


def _sparse(w: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Mechanism 2: the attention weights [B, T, T] that mix hidden channels."""
    mode = config.get("mlp_sparse_mode", "topk")
    if mode == "none":
        return w
    if mode == "topk":
        least = w.sort(-1, descending=True).values[..., : int(config.get("mlp_sparse_k", 8))][..., -1:]
        w = w * (w >= least)
    else:
        floor = config.get("mlp_sparse_tau", 0.5) * w.square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()
        w = w * (w >= floor)
    return w / w.sum(-1, keepdim=True).clamp(min=1e-8) if config.get("mlp_sparse_normalize", True) else w


# -- lens -----------------------------------------------------------------------------------------------------------


def _lens_block(block: _Part, config: Mapping[str, Any], h: Tensor, n_head: int, *, route: bool) -> Tensor:
    p, m = block.at("attn."), block.at("mlp.")
    x = block.norm("ln_1", h)
    if "k_up.weight" in p:
        k, v = p.linear("k_up", p.linear("k_down", x)), p.linear("v_up", p.linear("v_down", x))
    else:
        k, v = p.linear("k_proj", x), p.linear("v_proj", x)
    q, k, v = _heads(p.linear("q_proj", x), n_head), _heads(k, n_head), _heads(v, n_head)
    std, rec, disc = p["gates"].softmax(-1)[:, :, None, None].unbind(1)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    logits = std * scores
    if config.get("ra_alpha", 0.0) > 0:
        logits = logits + rec * scores.mT
    if "u" in p:
        found = torch.einsum("bhtd,hd->bht", k, p["u"])
        logits = logits + disc * (found - found.mean(-1, keepdim=True))[:, :, None]
    a = p.linear("o_proj", _joined(_attended(logits) @ v))
    g = (m["route_gate_raw"] + m["route_bias_add"]).sigmoid()
    t = F.gelu(m.linear("fc1", block.norm("ln_2", h + a)))
    if "ctx_alpha" in m and not (config.get("lens_ctx_conductor") and g >= 0.5):
        beta = m["ctx_alpha"].clamp(0, 1)
        t = (1 - beta) * t + beta * m.linear("ctx_up", m.linear("ctx_down", a))
    t = m.linear("fc2", t)
    return h + g * a + (1 - g) * t if route else h + a + t
