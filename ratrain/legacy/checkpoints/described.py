"""Builds a manifest for an old checkpoint: shapes from its tensors, the rest from the trainer's arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ratrain.config.toml import toml
from ratrain.data.tokenizer import VOCAB
from ratrain.errors import DataError
from ratrain.legacy.checkpoints.read import OldCheckpoint

_TOKENIZERS = {50304: "gpt2", 50257: "gpt2", 2048: "shakespeare2k"}  # by rows of the table; the reference had 50304
_HEADS = {"gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25}
_RANKS = {2: (9,), 8: (7, 8)}  # of the second gate's channels in V-steps; 4 in all others
_OPTIMIZERS = {"adamwspam": "adamw_amsgrad", "adamwadv": "adamw_amsgrad", "sinkgd": "sinkgd_legacy"}
_STILL = ("L0", "L1", "L2", "L3", "L4")  # lens steps whose route was not in use
_DATA = {"shakespeare": "shakespeare"}  # embedded; the others are prepared into data/NAME


@dataclass(frozen=True)
class Described:
    """Facts about a checkpoint beside its tensors."""

    n_layer: int
    n_head: int
    rank: int  # of unified RA's second gate
    route: bool  # whether a lens model's route was in use
    tree: dict[str, Any]  # the manifest

    def toml(self) -> str:
        return _toml(self.tree)


def described(old: OldCheckpoint, generation: str) -> Described:
    """Describes a checkpoint. Raises DataError if a fact is in neither its tensors nor its arguments."""
    n_layer = 1 + max(int(found[1]) for name in old.weights if (found := re.match(r"transformer\.h\.(\d+)\.", name)))
    n_head, rank, route = _n_head(old), _rank(old), generation == "lens" and _has_route(old)
    tree = {
        "id": f"{_word(old.step_name) or generation.lower()}_old",
        "title": f"Converted from the reference: {_titled(old, generation)}",
        "extends": "gpt2.toml",
        "scale": "custom",
        "model": _model(old, n_layer, n_head),
        "data": _data(old),
        "optim": _optim(old),
        "schedule": _schedule(old),
        "train": _train(old),
        "patch": _patches(old, generation, rank=rank, route=route),
        "origin": {"generation": generation, "checkpoint": old.path.name},
    }
    if old.step_name:
        tree["origin"]["step"] = old.step_name
    return Described(n_layer, n_head, rank, route, {key: value for key, value in tree.items() if value})


def _titled(old: OldCheckpoint, generation: str) -> str:
    step = f"step {old.step_name}, " if old.step_name else ""
    return f"{step}{'GPT-2' if generation == 'plain' else f'generation {generation}'}, {old.step:,} iterations"


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _shape(old: OldCheckpoint, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor of the first block, () if there is none."""
    tensor = old.weights.get(f"transformer.h.0.{name}")
    return () if tensor is None else tuple(tensor.shape)


def _n_head(old: OldCheckpoint) -> int:
    for name in ("attn.q_to_latent", "attn.v_up", "attn.gates", "attn.w_std", "attn.ra_ct_scale"):
        if shape := _shape(old, name):
            return shape[0]
    width = old.weights["transformer.wte.weight"].shape[1]
    model = str(old.config.get("model_name", old.config.get("model", "")))
    found = old.config.get("n_head", _HEADS.get(model))
    if not isinstance(found, int) or width % found:
        raise DataError(f"{old.path}: the number of heads is unknown; expected n_head or a GPT-2 size in its config")
    return found


def _rank(old: OldCheckpoint) -> int:
    told = old.config.get("ra_v5_R")
    if isinstance(told, int):
        return told
    step = re.fullmatch(r"V(\d+)", old.step_name)
    if _shape(old, "attn.c_attn.weight") and "transformer.h.0.attn.w_std" in old.weights and step is None:
        raise DataError(f"{old.path}: the channels of its second gate are unknown; expected ra_v5_R in its config")
    return next((rank for rank, steps in _RANKS.items() if step and int(step[1]) in steps), 4)


def _has_route(old: OldCheckpoint) -> bool:
    if not old.step_name:
        raise DataError(f"{old.path}: its lens step is unknown; expected ra_mla_ablation_step in its config")
    return old.step_name not in _STILL


def _model(old: OldCheckpoint, n_layer: int, n_head: int) -> dict[str, Any]:
    width = old.weights["transformer.wte.weight"].shape[1]
    hidden = (_shape(old, "mlp.c_fc.weight") or _shape(old, "mlp.fc1.weight") or _shape(old, "mlp.down.weight")[::-1])[
        0
    ]
    return {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": width,
        "block_size": old.weights["transformer.wpe.weight"].shape[0],
        "vocab_size": VOCAB[_tokenizer(old)],
        "mlp_ratio": hidden / width,
        "dropout": float(old.config.get("dropout", 0.1)),
    }


def _data(old: OldCheckpoint) -> dict[str, Any]:
    name = str(old.config.get("dataset", "shakespeare"))
    return {"source": _DATA.get(name, f"data/{name}"), "tokenizer": _tokenizer(old)}


def _tokenizer(old: OldCheckpoint) -> str:
    rows = len(old.weights["transformer.wte.weight"])
    if rows not in _TOKENIZERS:
        known = ", ".join(map(str, _TOKENIZERS))
        raise DataError(
            f"{old.path}: its token table has {rows} rows, and no tokenizer here has as many; expected {known}"
        )
    return _TOKENIZERS[rows]


def _optim(old: OldCheckpoint) -> dict[str, Any]:
    name = str(old.config.get("optimizer", "adamw"))
    kind = _OPTIMIZERS.get(name, "adamw")
    # as it ran: no decay on one GPU, and no clipping under adamw and sinkgd
    common = {"kind": kind, "weight_decay": 0.0, "clip": 1.0 if kind == "adamw_amsgrad" else 0.0}
    if kind == "sinkgd_legacy":
        return common | {
            "tau": float(old.config.get("sinkgd_tau", 0.1)),
            "iterations": int(old.config.get("sinkgd_iters", 5)),
        }
    return common | {"betas": [0.9, 0.999]}


def _schedule(old: OldCheckpoint) -> dict[str, Any]:
    lr = float(old.config.get("learning_rate", 6e-4))
    final = min(1.0, float(old.config.get("min_lr", 6e-5)) / lr)
    return {"kind": "cosine", "lr": lr, "final": final, "warmup": {"steps": int(old.config.get("warmup_steps", 100))}}


def _train(old: OldCheckpoint) -> dict[str, Any]:
    micro = int(old.config.get("batch_size", 12))
    return {
        "budget": {"steps": max(int(old.config.get("max_iters", 10_000)), old.step, 1)},
        "batch": micro * int(old.config.get("gradient_accumulation", 4)),
        "micro_batch": micro,
        "precision": "fp32" if old.config.get("dtype") == "float32" else "amp_bf16",
    }


# -- patches --------------------------------------------------------------------------------------------------------


def _patches(old: OldCheckpoint, generation: str, *, rank: int, route: bool) -> dict[str, Any]:
    if generation == "lens":
        return {"lens": _lens(old, route=route)}
    if generation in ("C", "D"):
        return {"ra_mla": _ra_mla(old, generation)}
    found: dict[str, Any] = {}
    if "transformer.h.0.attn.w_std" in old.weights:
        gates = "head" if old.weights["transformer.h.0.attn.w_std"].numel() > 1 else "layer"
        found["unified_ra"] = {"rank": rank, "gates": gates}
    if _shape(old, "attn.rwr_alpha"):
        found["self_restart"] = {}
    if width := _shape(old, "mlp.up_low.weight"):
        gated = "transformer.h.0.mlp.gate_alpha" in old.weights
        mixed = bool(_shape(old, "mlp.mixer.weight"))
        found["reciprocal_mlp"] = {"width": width[0], "mixer": mixed, "gate": "layer" if gated else "none"}
    return found


def _ra_mla(old: OldCheckpoint, generation: str) -> dict[str, Any]:
    config = old.config
    couplings = {float(tensor) for name, tensor in old.weights.items() if name.endswith(".coupling_scale")}
    if len(couplings) > 1 or not couplings <= {0.0, 1.0}:
        raise DataError(f"{old.path}: its blocks have couplings {sorted(couplings)}; expected 0 in all, or 1 in all")
    options: dict[str, Any] = {
        "profile": "as_run",
        "latent": _shape(old, "attn.k_down.weight")[0],
        "per_head_q": bool(_shape(old, "attn.q_to_latent")),
        "per_head_v": bool(_shape(old, "attn.v_up")),
        "alpha": float(config.get("ra_alpha") or 0.0),
        "coupling": 1 if generation == "C" else int(max(couplings)),
    }
    if options["alpha"]:
        options["window"] = int(config.get("ra_window", 64))
    if _shape(old, "attn.ra_ct_scale"):
        options["cross_token"] = _cross_token(config)
    if width := _shape(old, "mlp.gate_proj.weight"):
        options["gate"] = {"width": width[0], "alpha": float(config.get("mlp_gate_alpha", 0.1))}
    if _shape(old, "mlp.cross_proj.weight"):
        options["cross"] = _cross(config)
    if "transformer.h.0.mlp.mlp_recip_alpha_mlp" in old.weights:
        tying = {"mlp.coupler.W": "tied_transpose", "mlp.coupler.alpha_attn_to_mlp": "per_head_scalar"}
        kind = next((kind for name, kind in tying.items() if _shape(old, name)), "untied")
        alpha = float(config.get("mlp_recip_alpha", 0.2))
        options["latent_mlp"] = {"alpha": alpha, "back": alpha, "tying": kind}
    return options


def _cross_token(config: Mapping[str, Any]) -> dict[str, Any]:
    stat, apply = config.get("ra_ct_mode", "topk"), config.get("ra_ct_apply", "output")
    options = {
        "stat": stat,
        "apply": apply,
        "head_average": bool(config.get("ra_ct_head_average")),
        "detach": bool(config.get("ra_ct_detach_stats")),
    }
    options |= {"k": int(config.get("ra_ct_k", 8))} if stat == "topk" else {}
    return options | ({"alpha": float(config.get("ra_ct_alpha", 0.2))} if apply == "weights" else {})


def _cross(config: Mapping[str, Any]) -> dict[str, Any]:
    sparse = config.get("mlp_sparse_mode", "topk")
    options = {
        "sparse": sparse,
        "alpha": float(config.get("mlp_cross_alpha", 0.3)),
        "normalize": bool(config.get("mlp_sparse_normalize", True)),
    }
    options |= {"k": int(config.get("mlp_sparse_k", 8))} if sparse == "topk" else {}
    return options | ({"tau": float(config.get("mlp_sparse_tau", 0.5))} if sparse == "rms" else {})


def _lens(old: OldCheckpoint, *, route: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "profile": "as_run",
        "reciprocity": float(old.config.get("ra_alpha") or 0.0) > 0,
        "discoverability": bool(_shape(old, "attn.u")),
    }
    if rank := _shape(old, "attn.k_down.weight"):
        options["compress"] = rank[0]
    if route:
        anneal = {"kind": "ramp", "after": {"steps": 2000}, "over": {"steps": 8000}}
        options["route"] = {"anneal": anneal}
    if width := _shape(old, "mlp.ctx_down.weight"):
        options["context"] = {"rank": width[0], "conductor": bool(old.config.get("lens_ctx_conductor"))}
    return options


# -- TOML -----------------------------------------------------------------------------------------------------------


def _toml(tree: Mapping[str, Any]) -> str:
    lines = [f"{key} = {toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for key, table in tree.items():
        if key == "patch":
            tables = {f"patch.{name}": options for name, options in table.items()}
        else:
            tables = {key: table} if isinstance(table, dict) else {}
        for name, options in tables.items():
            lines += ["", f"[{name}]", *(f"{inner} = {toml(value)}" for inner, value in options.items())]
    return "\n".join(lines) + "\n"
