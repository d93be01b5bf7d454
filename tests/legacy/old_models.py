"""The reference's models, small, by its names of modules and parameters: written from the specification alone, as
modules that train, where ratrain's reader has functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import nn

WIDTH, HEADS, LAYERS, BLOCK, VOCAB = 16, 2, 2, 24, 2048
D = WIDTH // HEADS


def number(value):
    return nn.Parameter(torch.tensor(float(value)))


def heads(x):
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def merged(y):
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def softmax(scores):
    t = scores.shape[-1]
    return scores.masked_fill(torch.arange(t) > torch.arange(t)[:, None], -math.inf).softmax(-1)


class Attention(nn.Module):
    """Plain; with `rank` unified RA, with `restart` its self-loop."""

    def __init__(self, *, rank=0, per_head=False, restart=False):
        super().__init__()
        self.rank = rank
        if rank:
            self.register_buffer("_gates_dirty", torch.tensor(True))
            shape = (HEADS,) if per_head else ()
            self.w_std, self.w_rec = nn.Parameter(torch.full(shape, 0.9)), nn.Parameter(torch.full(shape, 0.1))
            if restart:
                self.rwr_alpha = nn.Parameter(torch.full((HEADS,), 0.05))
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=not rank)
        self.c_proj = nn.Linear(WIDTH, WIDTH, bias=not rank)

    def forward(self, x):
        q, k, v = map(heads, self.c_attn(x).split(WIDTH, -1))
        weight = torch.ones(HEADS, 1, D, dtype=x.dtype)
        if self.rank:
            gates = [gate.clamp(min=1e-8).expand(HEADS) for gate in (self.w_std, self.w_rec)]
            weight = torch.stack([gates[c >= D - self.rank] for c in range(D)], -1)[:, None]
        y = softmax((q * weight) @ k.transpose(-1, -2) / math.sqrt(D)) @ v
        if hasattr(self, "rwr_alpha"):
            alpha = self.rwr_alpha.clamp(0, 0.5).view(HEADS, 1, 1)
            y = y - alpha * y + alpha * v
        return self.c_proj(merged(y))


class MLP(nn.Module):
    def __init__(self, width=4 * WIDTH):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x):
        return self.c_proj(nn.functional.gelu(self.c_fc(x)))


class ReciprocalMLP(nn.Module):
    """R-MLP of the V-series."""

    def __init__(self, *, low=8, mixer=False, gated=False):
        super().__init__()
        self.w_std, self.w_rec = number(0.9), number(0.1)
        self.gate_alpha = number(0.1) if gated else None
        self.up_std = nn.Linear(WIDTH, 4 * WIDTH - low, bias=False)
        self.up_low = nn.Linear(WIDTH, low, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.mixer = nn.Linear(low, low, bias=False) if mixer else None

    def forward(self, x):
        std, low = nn.functional.gelu(self.up_std(x)), nn.functional.gelu(self.up_low(x))
        low = self.mixer(low) if self.mixer else low
        low = low * self.gate_alpha if self.gate_alpha is not None else low
        return self.down(torch.cat((std * self.w_std, low * self.w_rec), -1))


class Block(nn.Module):
    def __init__(self, attn, mlp):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(WIDTH), attn, nn.LayerNorm(WIDTH), mlp

    def forward(self, h):
        h = h + self.attn(self.ln_1(h))
        return h + self.mlp(self.ln_2(h))


class Latent(nn.Module):
    """RA+MLA's attention; `coupling` None: generation C."""

    def __init__(self, *, latent=6, alpha=0.3, coupling=None, shared=False, ct=None, mechanisms=False):
        super().__init__()
        self.config, self.L = ct or {}, latent
        if not shared:
            self.q_to_latent = nn.Parameter(torch.randn(HEADS, D, latent) * 0.3)
            self.v_up = nn.Parameter(torch.randn(HEADS, latent, D) * 0.3)
        if coupling is not None:
            self.register_buffer("coupling_scale", torch.tensor(float(coupling)))
        if alpha:
            self.ra_alpha = number(alpha)
        else:
            self.register_buffer("ra_alpha", torch.tensor(0.0))
        if mechanisms:
            self.mlp_gate_alpha = number(0.1)
            self.mlp_recip_alpha_attn = number(0.2)
        if ct:
            self.ra_ct_scale, self.ra_ct_bias = nn.Parameter(torch.ones(HEADS)), nn.Parameter(torch.full((HEADS,), 2.0))
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_down, self.v_down = nn.Linear(WIDTH, latent, bias=False), nn.Linear(WIDTH, latent, bias=False)
        if shared:
            self.q_to_latent_shared = nn.Linear(WIDTH, latent, bias=False)
            self.v_up_shared = nn.Linear(latent, D, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        cs = getattr(self, "coupling_scale", torch.tensor(1.0))
        self.keys = k = self.k_down(x)
        if hasattr(self, "v_up"):
            q = torch.stack([heads(self.q_proj(x))[:, h] @ self.q_to_latent[h] for h in range(HEADS)], 1)
            v = torch.stack([self.v_down(x) @ self.v_up[h] for h in range(HEADS)], 1)
        else:
            q = torch.stack([self.q_to_latent_shared(x)] * HEADS, 1)
            v = torch.stack([self.v_up_shared(self.v_down(x))] * HEADS, 1)
        s = torch.stack([q[:, h] @ k.transpose(1, 2) for h in range(HEADS)], 1) / math.sqrt(self.L)
        if self.ra_alpha > 0 and cs > 0:
            near = torch.ones(x.shape[1], x.shape[1]).tril(3).triu(-3)  # a window of 3
            term = torch.einsum("bhid,bjm->bhij", q, k) / math.sqrt(self.L)  # d and m are two letters, as they were
            s = s + cs * self.ra_alpha * term * near
        p = softmax(s)
        gate = None
        if self.config:
            stat = {
                "topk": lambda: p.topk(min(4, p.shape[-1]), -1).values.sum(-1),
                "max": lambda: p.amax(-1),
                "entropy": lambda: -(p * p.clamp(min=1e-12).log()).sum(-1),
                "rms": lambda: (p**2).mean(-1) ** 0.5,
            }[self.config["ra_ct_mode"]]()
            gate = torch.sigmoid(stat * self.ra_ct_scale.view(-1, 1) + self.ra_ct_bias.view(-1, 1))[..., None]
        if gate is not None and self.config["ra_ct_apply"] == "weights":
            p = p * (0.75 + 0.25 * gate)  # an alpha of 0.25
        self.probs = p
        y = p @ v
        if gate is not None and self.config["ra_ct_apply"] == "output":
            y = y * gate
        return self.out_proj(merged(y))


class Coupler(nn.Module):
    def __init__(self, width, latent, tying):
        super().__init__()
        self.tying = tying
        if tying == "tied_transpose":
            self.W = nn.Parameter(torch.randn(width, latent) * 0.2)
        else:
            if tying == "per_head_scalar":
                self.alpha_attn_to_mlp = nn.Parameter(torch.ones(HEADS))
                self.alpha_mlp_to_attn = nn.Parameter(torch.ones(HEADS))
            self.attn_to_mlp = nn.Linear(latent, width, bias=False)
            self.mlp_to_attn = nn.Linear(width, latent, bias=False)

    def forward(self, latents):
        if self.tying == "tied_transpose":
            return latents @ self.W.t()
        made = self.attn_to_mlp(latents)
        if self.tying == "per_head_scalar":
            chunks = made.chunk(HEADS, -1)
            made = torch.cat([chunk * a for chunk, a in zip(chunks, self.alpha_attn_to_mlp, strict=True)], -1)
        return made


class MechanismMLP(nn.Module):
    """RA+MLA's reciprocal MLP with all three mechanisms."""

    def __init__(self, *, width=40, latent=6, coupling=None, tying="tied_transpose", sparse="topk"):
        super().__init__()
        if coupling is not None:
            self.register_buffer("coupling_scale", torch.tensor(float(coupling)))
        self.sparse = sparse
        self.mlp_cross_alpha, self.mlp_recip_alpha_mlp = number(0.3), number(0.2)
        self.c_fc, self.c_proj = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)
        self.gate_proj, self.gate_to_heads = nn.Linear(width, 5), nn.Linear(5, HEADS)
        self.cross_proj = nn.Linear(width, width, bias=False)
        self.mlp_down = nn.Linear(width, 128, bias=False)
        self.coupler = Coupler(width, latent, tying)

    def forward(self, x, probs, latents):
        cs = getattr(self, "coupling_scale", torch.tensor(1.0))
        u = nn.functional.gelu(self.c_fc(x))
        u = u + cs * self.mlp_recip_alpha_mlp * self.coupler(latents.detach())
        w = probs.detach().mean(1)
        if self.sparse == "topk":
            kept = w.topk(min(4, w.shape[-1]), -1)
            w = torch.zeros_like(w).scatter(-1, kept.indices, kept.values)
        elif self.sparse == "rms":
            w = torch.where(w >= 0.5 * (w**2).mean(-1, keepdim=True) ** 0.5, w, 0.0)
        if self.sparse != "none":
            w = w / w.sum(-1, keepdim=True)
        u = u + cs * self.mlp_cross_alpha * self.cross_proj(w @ u)
        return self.c_proj(u)


class LatentBlock(nn.Module):
    """Norms come first in the wrapper."""

    def __init__(self, attn, mlp):
        super().__init__()
        self.ln_1, self.ln_2, self.attn, self.mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), attn, mlp

    def forward(self, h):
        h = h + self.attn(self.ln_1(h))
        x = self.ln_2(h)
        return h + (self.mlp(x, self.attn.probs, self.attn.keys) if isinstance(self.mlp, MechanismMLP) else self.mlp(x))


class LensAttention(nn.Module):
    def __init__(self, *, rec, disc, rank):
        super().__init__()
        self.rec = rec
        self.gates = nn.Parameter(torch.tensor([2.2, 0.6, 0.1]).repeat(HEADS, 1))
        if disc:
            self.u = nn.Parameter(torch.randn(HEADS, D))
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        if rank:
            self.k_down, self.k_up = nn.Linear(WIDTH, rank, bias=False), nn.Linear(rank, WIDTH, bias=False)
            self.v_down, self.v_up = nn.Linear(WIDTH, rank, bias=False), nn.Linear(rank, WIDTH, bias=False)
        else:
            self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        narrow = hasattr(self, "k_up")
        q = heads(self.q_proj(x))
        k = heads(self.k_up(self.k_down(x)) if narrow else self.k_proj(x))
        v = heads(self.v_up(self.v_down(x)) if narrow else self.v_proj(x))
        s, w = q @ k.transpose(-1, -2) / math.sqrt(D), self.gates.softmax(-1)
        logits = w[:, 0].view(-1, 1, 1) * s
        if self.rec:
            logits = logits + w[:, 1].view(-1, 1, 1) * s.transpose(-1, -2)
        if hasattr(self, "u"):
            d = (k * self.u[:, None]).sum(-1)
            logits = logits + w[:, 2].view(-1, 1, 1) * (d - d.mean(-1, keepdim=True)).unsqueeze(-2)
        return self.o_proj(merged(softmax(logits) @ v))


class LensMLP(nn.Module):
    def __init__(self, *, context, conductor):
        super().__init__()
        self.conductor = conductor
        if context:
            self.ctx_alpha = number(0.1)
        self.route_gate_raw = number(2.2)
        self.register_buffer("route_bias_add", torch.tensor(-0.8))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        if context:
            self.ctx_down = nn.Linear(WIDTH, context, bias=False)
            self.ctx_up = nn.Linear(context, 4 * WIDTH, bias=False)

    def gate(self):
        return torch.sigmoid(self.route_gate_raw + self.route_bias_add)

    def forward(self, x, a):
        t = nn.functional.gelu(self.fc1(x))
        if hasattr(self, "ctx_up") and not (self.conductor and self.gate() >= 0.5):
            beta = self.ctx_alpha.clamp(0, 1)
            t = torch.lerp(t, self.ctx_up(self.ctx_down(a.detach())), beta)
        return self.fc2(t)


class LensBlock(nn.Module):
    def __init__(self, *, rec=True, disc=True, rank=0, route=False, context=0, conductor=False):
        super().__init__()
        self.route = route
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = LensAttention(rec=rec, disc=disc, rank=rank)
        self.mlp = LensMLP(context=context, conductor=conductor)

    def forward(self, h):
        a = self.attn(self.ln_1(h))
        m = self.mlp(self.ln_2(h + a), a)
        g = self.mlp.gate()
        return h + g * a + (1 - g) * m if self.route else h + a + m


class GPT(nn.Module):
    """The model around `block()`s."""

    def __init__(self, block):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(BLOCK, WIDTH),
                "h": nn.ModuleList(block() for _ in range(LAYERS)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens):
        h = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        for block in self.transformer.h:
            h = block(h)
        return self.lm_head(self.transformer.ln_f(h))
