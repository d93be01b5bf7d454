"""Compares the shape of a model with that of pretrained weights, and derives the settings that fit them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratrain.config.find import find_manifest, scales
from ratrain.config.read import read_source
from ratrain.config.resolve import VOCAB_SIZES
from ratrain.config.schema import ModelSpec
from ratrain.config.toml import toml
from ratrain.errors import DataError, Fault, ManifestError

_ACT = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    "gelu": "gelu",
    "relu2": "relu2",
}
# keys of config.json that change the function, with the only value that this model has
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def require_same_shape(tensors: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> tuple[str, ...]:
    """Checks the model's shape against the weights; returns notes on properties that could not be checked.

    A position table longer than block_size fits, and so does a token table with or without padding rows. Raises
    ManifestError with every key of [model] that does not fit, and DataError for invalid or contradictory files.
    """
    config = _config(path)
    known = {**_by_tensors(tensors, path), **({} if config is None else _by_config(config, path))}
    tied = True if config is None else config.get("tie_word_embeddings", True)
    if config is not None and tied and known["head"] == "untied":
        raise DataError(f"{path}: config.json ties the head to the token table, but lm_head.weight is another")
    if not tied and "lm_head.weight" not in tensors:
        raise DataError(f"{path}: lacks lm_head.weight, which config.json does not tie to the token table")
    fits = {
        "head": known["head"] in ("tied", spec.head),  # tied weights fit an untied head, which starts as a copy
        "mlp_ratio": round(known["mlp_ratio"] * known["n_embd"]) == spec.n_hidden,
        "block_size": spec.block_size <= known["block_size"],
        "vocab_size": known["vocab_size"] in (spec.vocab_size, spec.padded_vocab),
    }
    wrong = [key for key, value in known.items() if not fits.get(key, getattr(spec, key) == value)]
    if wrong:
        flags = _flags({key: known[key] for key in known if key in wrong or key in ("n_layer", "n_head", "n_embd")})
        faults = [
            Fault(
                "", f"model.{key}", f"must be {_bound(key)}{_word(known[key])} for {path}, got {getattr(spec, key)!r}"
            )
            for key in wrong
        ]
        raise ManifestError([*faults, Fault("", "init.weights", f"the model that fits has {flags}")])
    if config is not None:
        return ()
    return (
        f"{path} has no config.json: model.n_head = {spec.n_head} and model.act = {spec.act!r} are not checked; "
        "released GPT-2 has 64 channels a head and 'gelu_tanh'",
    )


def is_untied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights have a head that differs from the token table."""
    table, head = tensors["wte.weight"], tensors.get("lm_head.weight")
    return head is not None and not (head.dtype == table.dtype and torch.equal(head, table))


def _config(path: Path) -> dict[str, Any] | None:
    """Reads the folder's config.json; None for a single file or if it is missing. Raises DataError."""
    file = path / "config.json"
    if not path.is_dir() or not file.exists():
        return None
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{file}: expected an object")
    return config


def _by_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Derives keys of [model] from the tensors. Raises DataError if they are not a GPT-2."""
    layers = [int(found[1]) for name in tensors if (found := re.match(r"h\.(\d{1,5})\.", name))]
    tables = [tensors.get(name) for name in ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight")]
    if not layers or any(table is None or table.dim() != 2 or not table.numel() for table in tables):
        raise DataError(f"{path}: is not a GPT-2: expected the matrices wte, wpe and h.0.mlp.c_fc")
    (vocab_size, n_embd), (block_size, _), (_, n_hidden) = (table.shape for table in tables if table is not None)
    return {
        "n_layer": max(layers) + 1,
        "n_embd": n_embd,
        "block_size": block_size,
        "vocab_size": vocab_size,
        "mlp_ratio": n_hidden / n_embd,
        # if a file lacks some biases, a later check names them
        "bias": any(name.endswith((".c_attn.bias", ".c_proj.bias", ".c_fc.bias", "ln_f.bias")) for name in tensors),
        "pos": "learned",
        "norm": "layer",
        "qk_norm": "none",
        "head": "untied" if is_untied(tensors) else "tied",
    }


def _by_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Reads keys of [model] from config.json or the format's defaults. Raises ManifestError for unsupported values."""
    odd = [f"{key} = {config[key]!r}" for key, value in _FIXED.items() if config.get(key, value) != value]
    form = config.get("activation_function", "gelu_new")
    if form not in _ACT:
        odd.append(f"activation_function = {form!r}")
    if odd:
        message = f"{path / 'config.json'} says {', '.join(odd)}, which this model does not support"
        raise ManifestError([Fault("", "init.weights", message)])
    return {
        "n_head": config.get("n_head", 12),
        "act": _ACT[form],
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
    }


def _bound(key: str) -> str:
    return "at most " if key == "block_size" else ""


def _flags(wanted: Mapping[str, Any]) -> str:
    """Formats command-line options that set these keys: a shipped scale if one matches, the rest by --set."""
    words, rest = [], dict(wanted)
    for name in scales():
        sizes = read_source(find_manifest("gpt2"), scale=name).tree["model"]
        if all(sizes.get(key) == wanted.get(key, sizes.get(key)) for key in ("n_layer", "n_head", "n_embd")):
            words.append(f"--scale {name}")
            rest = {key: value for key, value in wanted.items() if sizes.get(key) != value}
            break
    tokenizers = [name for name, size in VOCAB_SIZES.items() if size == rest.get("vocab_size")]
    words += [f"--set model.{key}={_word(value)}" for key, value in rest.items()]
    words += [f"--set data.tokenizer={name}" for name in tokenizers]
    return " ".join(words)


def _word(value: Any) -> str:
    """Formats a value as an option --set takes it: strings without quotes."""
    return value if isinstance(value, str) else toml(value)
