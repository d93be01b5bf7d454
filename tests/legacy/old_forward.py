"""The old studies' forward pass as their text says it, in float64, over a state dict: what our modules must agree with.

Written token by token and head by head, without one of our modules. B batch, T tokens, C channels, H heads, D head_dim,
L latent channels, F hidden channels.
"""

from __future__ import annotations

import math

import torch


def norm(x, state, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def heads_of(x, n_head):
    """[B, T, C] -> H tensors [B, T, D]."""
    return x.chunk(n_head, dim=-1)


def softmax_rows(scores):
    """[B, T, T], each row over the tokens up to its own."""
    rows = torch.zeros_like(scores)
    for i in range(scores.shape[1]):
        rows[:, i, : i + 1] = scores[:, i, : i + 1].softmax(-1)
    return rows


def logits(state, tokens, attend, mlp, n_layer):
    """Token logits; `attend(block, x, answer)` -> (y, seen), `mlp(block, x, seen)` -> (m, answer) make a block.

    `block` reads the state by a name within the block.
    """
    h = state["wte.weight"][tokens] + state["pos.weight"][: tokens.shape[1]]
    answer = None
    for layer in range(n_layer):

        def block(name, layer=layer):
            return state.get(f"blocks.{layer}.{name}")

        y, seen = attend(block, norm(h, state, f"blocks.{layer}.norm_1"), answer)
        h = h + y
        m, answer = mlp(block, norm(h, state, f"blocks.{layer}.norm_2"), seen)
        h = h + m
    return norm(h, state, "norm") @ state["wte.weight"].T


# -- RA+MLA ---------------------------------------------------------------------------------------------------------


def ra_mla(options, n_head):
    """(attend, mlp) of the options of [patch.ra_mla], as intended."""
    return lambda *args: _attend(options, n_head, *args), lambda *args: _mlp(options, n_head, *args)


def _queries_keys_values(o, n_head, block, x):
    """Per head: q [B, T, L], k [B, T, L], v [B, T, D]; and the latent keys."""
    weight = block("attn.qkv.weight")
    if o.latent is None:
        q, k, v = (x @ w.T + b for w, b in zip(weight.chunk(3), block("attn.qkv.bias").chunk(3), strict=True))
        return [heads_of(t, n_head) for t in (q, k, v)]
    n_latent = block("attn.core.maps.u").shape[1]
    q = x @ weight[: -2 * n_latent].T
    k, v = x @ weight[-2 * n_latent : -n_latent].T, x @ weight[-n_latent:].T
    a, u = block("attn.core.maps.a"), block("attn.core.maps.u")
    qs = [q] * n_head if a is None else [part @ a[head] for head, part in enumerate(heads_of(q, n_head))]
    return qs, [k] * n_head, [v @ u[head % len(u)] for head in range(n_head)]


def _attend(o, n_head, block, x, answer):
    qs, ks, vs = _queries_keys_values(o, n_head, block, x)
    latents = ks[0]
    if answer and answer["back"] is not None:
        latents = latents + block("attn.core.back_alpha") * answer["back"]
        ks = [latents] * n_head
    probs = []
    for head, (q, k) in enumerate(zip(qs, ks, strict=True)):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if o.alpha:
            band = torch.zeros_like(scores)
            for i in range(x.shape[1]):
                for j in range(max(0, i - o.window), i + 1):
                    band[:, i, j] = (q[:, j] * k[:, i]).sum(-1) / q.shape[-1] ** 0.5
            scores = scores + block("attn.core.alpha") * band
        p = softmax_rows(scores)
        if answer and answer["gate"] is not None:
            p = p * (1 - block("attn.core.gate_alpha") * (1 - answer["gate"][:, :, head, None]))
        probs.append(p)
    ys = [p @ v for p, v in zip(probs, vs, strict=True)]
    if o.cross_token:
        stats = [_statistic(o.cross_token, p) for p in probs]
        if o.cross_token.head_average:
            stats = [sum(stats) / n_head] * n_head
        w, b = block("attn.core.cross_token.weight"), block("attn.core.cross_token.bias")
        gates = [torch.sigmoid(stat * w[head] + b[head]) for head, stat in enumerate(stats)]
        ys = [
            y * (1 - o.cross_token.alpha + o.cross_token.alpha * g[..., None]) for y, g in zip(ys, gates, strict=True)
        ]
    y = torch.cat(ys, dim=-1) @ block("attn.proj.weight").T
    bias = block("attn.proj.bias")
    return (y if bias is None else y + bias), {"probs": probs, "latents": latents}


def _statistic(o, p):  # [B, T, T] -> [B, T]
    out = torch.zeros_like(p[..., 0])
    for i in range(p.shape[1]):
        row = p[:, i, : i + 1]
        if o.stat == "topk":
            out[:, i] = row.sort(-1, descending=True).values[:, : o.k].sum(-1)
        elif o.stat == "max":
            out[:, i] = row.max(-1).values
        elif o.stat == "entropy":
            out[:, i] = -(row * row.log()).sum(-1)
        else:
            out[:, i] = row.square().mean(-1).sqrt()
    return out


def _mlp(o, n_head, block, x, seen):
    u = gelu(x @ block("mlp.up.weight").T + block("mlp.up.bias"))
    gate = back = None
    if o.latent_mlp:
        up, alpha = block("mlp.coupler.to_hidden"), block("mlp.coupler.alpha")
        down = block("mlp.coupler.to_latent")
        enriched = seen["latents"].detach() @ up.T
        back = u @ (up if down is None else down.T)
        if o.latent_mlp.tying == "per_head_scalar":
            enriched = _chunks_times(enriched, block("mlp.coupler.hidden_scale"))
            scale = block("mlp.coupler.latent_scale")
            back = back if scale is None else _chunks_times(back, scale)
        u = u + alpha * enriched
    if o.cross:
        w = _sparse(o.cross, sum(seen["probs"]).detach() / n_head)
        narrow = block("mlp.cross.narrow.weight")
        z = u if narrow is None else u @ narrow.T
        u = u + block("mlp.cross.alpha") * (w @ z) @ block("mlp.cross.proj.weight").T
    if o.gate and block("mlp.gate.narrow.weight") is not None:
        x = u @ block("mlp.gate.narrow.weight").T + block("mlp.gate.narrow.bias")
        mean = torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], dim=1)
        gate = torch.sigmoid(mean @ block("mlp.gate.heads.weight").T + block("mlp.gate.heads.bias"))  # [B, T, H]
    return u @ block("mlp.down.weight").T + block("mlp.down.bias"), {"gate": gate, "back": back}


def _chunks_times(x, scale):
    return torch.cat([part * s for part, s in zip(x.chunk(len(scale), dim=-1), scale, strict=True)], dim=-1)


def _sparse(o, w):  # [B, T, T]
    out = torch.zeros_like(w)
    for b in range(w.shape[0]):
        for i in range(w.shape[1]):
            row = w[b, i, : i + 1]
            if o.sparse == "topk":
                kept = set(row.argsort(descending=True)[: o.k].tolist())
            elif o.sparse == "rms":
                least = o.tau * row.square().mean().sqrt()
                kept = {j for j, value in enumerate(row.tolist()) if value >= least}
            else:
                kept = set(range(i + 1))
            total = sum(row[j] for j in kept) if o.normalize else 1.0
            for j in kept:
                out[b, i, j] = row[j] / total
    return out
