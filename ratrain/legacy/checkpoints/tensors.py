"""Maps the tensors of an old checkpoint to the model's: sources by name, and how they are cut and joined.

A weight's moments are cut and joined alike; `adjust` applies to the weight alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pick = Callable[[Sequence[Tensor]], Tensor]
_FLOOR = 1e-8  # the reference clamped its gates from below to this
_LEAST = 1e-7  # smallest share of self-restart, so that its logit is finite


@dataclass(frozen=True)
class Move:
    """A tensor of the model, made of the old tensors `sources`."""

    sources: tuple[str, ...]
    pick: Pick
    adjust: Callable[[Tensor], Tensor] | None = None
    keeps_moments: bool = True


def _same(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """A scalar becomes [1]; a vector over heads stays."""
    return parts[0].reshape(-1)


def tensor_moves(weights: Mapping[str, Tensor], n_layer: int, *, rows: int, route: bool = False) -> dict[str, Move]:
    """Returns the move of every tensor; the token table gets `rows` rows. `route`: whether a lens model used it."""
    names = set(weights)

    def table(parts: Sequence[Tensor]) -> Tensor:
        return torch.nn.functional.pad(parts[0], (0, 0, 0, rows - len(parts[0])))

    found = {"wte.weight": Move(("transformer.wte.weight",), table)}
    found["pos.weight"] = Move(("transformer.wpe.weight",), _same)
    found |= _layer("norm", "transformer.ln_f", names)
    for layer in range(n_layer):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        block = _Block(ours, theirs, names)
        block.layer("norm_1", "ln_1")
        block.layer("norm_2", "ln_2")
        if f"{theirs}.attn.gates" in names:
            _lens(block, route=route)
        elif f"{theirs}.attn.k_down.weight" in names:
            _latent(block, acts=_acts(weights, theirs))
        else:
            _series(block)
        found |= block.moves
    return found


def _acts(weights: Mapping[str, Tensor], theirs: str) -> bool:
    """Whether the coupling of a block is on. Generation C stored none, and had it on."""
    stored = weights.get(f"{theirs}.attn.coupling_scale")
    return stored is None or bool(stored)


def _layer(ours: str, theirs: str, names: set[str]) -> dict[str, Move]:
    return {
        f"{ours}.{leaf}": Move((f"{theirs}.{leaf}",), _same)
        for leaf in ("weight", "bias")
        if f"{theirs}.{leaf}" in names
    }


class _Block:
    """Collects the moves of one block; a move whose sources are not in the checkpoint is skipped."""

    def __init__(self, ours: str, theirs: str, names: set[str]):
        self.ours, self.theirs, self.names = ours, theirs, names
        self.moves: dict[str, Move] = {}

    def has(self, name: str) -> bool:
        return f"{self.theirs}.{name}" in self.names

    def layer(self, ours: str, theirs: str) -> None:
        self.moves |= _layer(f"{self.ours}.{ours}", f"{self.theirs}.{theirs}", self.names)

    def move(self, ours: str, *theirs: str, pick: Pick = _same, **options) -> None:
        if all(map(self.has, theirs)):
            sources = tuple(f"{self.theirs}.{name}" for name in theirs)
            self.moves[f"{self.ours}.{ours}"] = Move(sources, pick, **options)


def _series(b: _Block) -> None:
    """Plain GPT-2, unified RA and R-MLP."""
    b.layer("attn.qkv", "attn.c_attn")
    b.layer("attn.proj", "attn.c_proj")
    b.layer("mlp.up", "mlp.c_fc")
    b.layer("mlp.down", "mlp.c_proj")
    for gate in ("w_std", "w_rec"):
        b.move(f"attn.score.{gate}", f"attn.{gate}", pick=_flat, adjust=lambda w: w.clamp(min=_FLOOR))
        b.move(f"mlp.gate.{gate}", f"mlp.{gate}", pick=_flat)
    b.move("attn.blend.w", "attn.rwr_alpha", adjust=_as_logit, keeps_moments=False)
    b.move("mlp.up.weight", "mlp.up_std.weight", "mlp.up_low.weight", pick=_joined)
    b.move("mlp.down.weight", "mlp.down.weight")
    b.move("mlp.mix.mixer.0.weight", "mlp.mixer.weight")
    b.move("mlp.gate.g", "mlp.gate_alpha", pick=_flat)


def _as_logit(alpha: Tensor) -> Tensor:
    """Returns w with sigmoid(w) / 2 = alpha; the reference clipped alpha to 0..0.5."""
    return (2 * alpha.double()).clamp(_LEAST, 1 - _LEAST).logit().float()


def _latent(b: _Block, *, acts: bool) -> None:
    """RA+MLA; parts that had no effect at a coupling of 0 go to idle parameters."""
    q = "attn.q_to_latent_shared.weight" if b.has("attn.q_to_latent_shared.weight") else "attn.q_proj.weight"
    b.move("attn.qkv.weight", q, "attn.k_down.weight", "attn.v_down.weight", pick=_joined)
    b.move("attn.core.maps.a", "attn.q_to_latent")
    b.move("attn.core.maps.u", "attn.v_up")
    b.move("attn.core.maps.u", "attn.v_up_shared.weight", pick=lambda parts: parts[0].mT[None])
    b.layer("attn.proj", "attn.out_proj")
    band, floor = ("alpha", lambda a: a.clamp(min=0)) if acts else ("idle.alpha", None)  # a negative one was ignored
    b.move(f"attn.core.{band}", "attn.ra_alpha", pick=_flat, adjust=floor)
    b.move("attn.core.cross_token.weight", "attn.ra_ct_scale")
    b.move("attn.core.cross_token.bias", "attn.ra_ct_bias")
    b.move("attn.core.idle.gate_alpha", "attn.mlp_gate_alpha", pick=_flat)
    b.move("attn.core.idle.back_alpha", "attn.mlp_recip_alpha_attn", pick=_flat)
    b.layer("mlp.up", "mlp.c_fc")
    b.layer("mlp.down", "mlp.c_proj")
    for ours, theirs in (("narrow", "gate_proj"), ("heads", "gate_to_heads")):
        for leaf in ("weight", "bias"):
            b.move(f"mlp.idle.gate_{ours}_{leaf}", f"mlp.{theirs}.{leaf}")
    b.move("mlp.cross.proj.weight" if acts else "mlp.idle.cross_proj_weight", "mlp.cross_proj.weight")
    b.move("mlp.cross.alpha" if acts else "mlp.idle.cross_alpha", "mlp.mlp_cross_alpha", pick=_flat)
    coupler = "mlp.coupler." if acts else "mlp.idle.coupler_"
    b.move(f"{coupler}alpha", "mlp.mlp_recip_alpha_mlp", pick=_flat)
    b.move(f"{coupler}to_hidden", "mlp.coupler.W")
    b.move(f"{coupler}to_hidden", "mlp.coupler.attn_to_mlp.weight")
    b.move(f"{coupler}hidden_scale", "mlp.coupler.alpha_attn_to_mlp")
    b.move("mlp.idle.coupler_to_latent", "mlp.coupler.mlp_to_attn.weight")
    b.move("mlp.idle.coupler_latent_scale", "mlp.coupler.alpha_mlp_to_attn")
    b.move("mlp.idle.latents", "mlp.mlp_down.weight")


def _lens(b: _Block, *, route: bool) -> None:
    b.move("attn.qkv.weight", "attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight", pick=_joined)
    if b.has("attn.k_up.weight"):
        b.move("attn.qkv.q", "attn.q_proj.weight")
        for part in ("k_down", "k_up", "v_down", "v_up"):
            b.move(f"attn.qkv.{part}", f"attn.{part}.weight")
    for column, lens in enumerate(("std", "rec", "disc")):
        b.move(f"attn.core.{lens}", "attn.gates", pick=lambda parts, column=column: parts[0][:, column])
    b.move("attn.core.seeker.u", "attn.u")
    b.layer("attn.proj", "attn.o_proj")
    b.layer("mlp.up", "mlp.fc1")
    b.layer("mlp.down", "mlp.fc2")
    b.move("route.raw" if route else "idle.route_raw", "mlp.route_gate_raw", pick=_flat)
    if route:  # the bias moved from 0 to -3.2
        b.move("route.anneal", "mlp.route_bias_add", adjust=lambda added: added / -3.2)
    b.move("mlp.context.alpha", "mlp.ctx_alpha", pick=_flat)
    b.layer("mlp.context.down", "mlp.ctx_down")
    b.layer("mlp.context.up", "mlp.ctx_up")
