"""Loads weights of a GPT-2 in Hugging Face's layout into a model with any patches.

Such files store linear layers as [in, out] (`Conv1D`), so they are transposed here. The loaded model computes the same
function as the checkpoint if its mechanisms are closed (s = 0) or start neutral.

`repack = "reciprocal"` then rearranges the weights for each patch with a reciprocal form. This changes the function, by
intent, at s = 0 as well. Without gates in the weights, unified_ra and a folded tied_ra then have the same scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from ratrain.checksum import sha256_of
from ratrain.config.schema import Manifest
from ratrain.config.weights import weight_files, weights_path
from ratrain.errors import DataError, Fault, ManifestError
from ratrain.model.build import nudge
from ratrain.model.gpt2 import GPT2
from ratrain.model.pretrained_shape import require_same_shape

_TOP = {"wte": "wte", "pos": "wpe", "norm": "ln_f", "unembed": "lm_head"}
_BLOCK = {
    "norm_1": "ln_1", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj",
    "norm_2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
_TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.weight$")
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")  # buffers of older files


@dataclass(frozen=True)
class Loaded:
    """The number of tensors loaded into the model, and notes on properties that could not be checked."""

    tensors: int
    notes: tuple[str, ...]


@torch.no_grad()
def load_pretrained(model: GPT2, manifest: Manifest) -> Loaded:
    """Fills the base weights of a built model from `manifest.init`; weights added by patches keep their initial values.

    Raises MissingError; DataError for invalid files; ManifestError with every key of the model that does not fit.
    """
    init = manifest.init
    path = weights_path(str(init.weights))
    files = weight_files(path)
    if (found := sha256_of(files)) != init.sha256:
        raise DataError(f"{path}: has the SHA-256 {found[:8]}..., but init.sha256 is {str(init.sha256)[:8]}...")
    tensors = _decoder(dict(_read(files)), path)
    notes = require_same_shape(tensors, model.spec, path)
    if model.spec.head == "untied":
        tensors.setdefault("lm_head.weight", tensors["wte.weight"])
    else:
        tensors.pop("lm_head.weight", None)  # it is the token table
    places = _places(model)
    for ours, theirs in _names(model, tensors, path).items():
        tensor = tensors[theirs]
        _fill(places[ours], tensor.transpose(0, -1) if _TRANSPOSED.search(theirs) else tensor, theirs, path)
    if init.repack == "reciprocal" and not _repacked(model, manifest):
        message = "no patch here has a reciprocal form; expected 'exact', or unified_ra, or tied_ra with a rank"
        raise ManifestError([Fault("", "init.repack", message)])
    if manifest.seed.twin == "ulp":
        nudge(model.wte.weight)
    return Loaded(len(tensors), notes)


def _read(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for file in files:
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if name in seen:
                        raise DataError(f"{file}: {name} is in another shard as well")
                    seen.add(name)
                    yield name, opened.get_tensor(name)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{file}: is not a whole safetensors file: {error}") from error


def _decoder(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the decoder's weights by name, without prefix and without mask buffers. Raises DataError if invalid."""
    found = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    found = {name: t for name, t in found.items() if not _MASK.match(name)}
    if "wte.weight" not in found:
        some = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise DataError(f"{path}: is not a GPT-2 in Hugging Face's layout: no wte.weight; it holds {some}")
    if odd := sorted(name for name, tensor in found.items() if not tensor.is_floating_point()):
        kind = str(found[odd[0]].dtype).removeprefix("torch.")
        raise DataError(f"{path}: {odd[0]} is of type {kind}{_more(odd)}; expected float32, float16 or bfloat16")
    if bad := sorted(name for name, tensor in found.items() if not tensor.float().isfinite().all()):
        raise DataError(f"{path}: {bad[0]} holds NaN or infinity{_more(bad)}; expected finite weights")
    return found


def _names(model: GPT2, tensors: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Maps names of the base model's weights to names in the file.

    Raises DataError if the two sets of names differ, and ManifestError if a patch keeps no place for a base weight.
    """
    with torch.device("meta"):
        names = {ours: gpt2_name(ours) for ours, _ in GPT2(model.spec).named_parameters()}
    missing, extra = sorted(set(names.values()) - set(tensors)), sorted(set(tensors) - set(names.values()))
    if missing:
        raise DataError(f"{path}: lacks {missing[0]}{_more(missing)}")
    if extra:
        raise DataError(f"{path}: {extra[0]}{_more(extra)} has no place in a GPT-2")
    places = _places(model)
    lost = {
        site: ours for ours in names for site in model.claimed if ours not in places and ours.startswith(f"{site}.")
    }
    if lost:
        what = "keeps no {}, so that the pretrained one has no place; drop the patch with enabled = false"
        raise ManifestError([Fault("", f"patch.{model.claimed[s]}", what.format(ours)) for s, ours in lost.items()])
    return names


def gpt2_name(ours: str) -> str:
    """Returns the name in Hugging Face's GPT-2, which is nanoGPT's as well, of a parameter of an unpatched GPT2."""
    module, _, leaf = ours.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    _, layer, part = module.split(".", 2)
    return f"h.{layer}.{_BLOCK[part]}.{leaf}"


def _places(model: GPT2) -> dict[str, nn.Parameter]:
    """Returns the parameters of a built model by their base names, also if a patch holds them under another path."""
    return {
        f"{model.base_names.get(path, path)}.{leaf}": parameter
        for path, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
    }


def _fill(place: nn.Parameter, tensor: Tensor, name: str, path: Path) -> None:
    rows = place
    if name in ("wte.weight", "wpe.weight", "lm_head.weight") and tensor.dim() == 2:
        # padding rows of the table keep their initial values; positions beyond block_size are dropped
        rows = place[: tensor.shape[0]]
        tensor = tensor[: place.shape[0]]
    if rows.shape != tensor.shape:
        raise DataError(
            f"{path}: {name} is {tuple(tensor.shape)}, in this model {tuple(rows.shape)} (as Linear has it)"
        )
    rows.copy_(tensor)


def _repacked(model: GPT2, manifest: Manifest) -> bool:
    done = [manifest.patch[name].repack(model, site) for site, name in model.claimed.items()]
    return any(done)


def _more(names: Sequence[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
