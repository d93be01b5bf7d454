"""Exports the weights of a run to one safetensors file; pruned matrices are stored as bit masks and kept values.

A pruned matrix `w` is stored as `w.mask`, uint8 [ceil(n / 8)], with weight i in row-major order at bit i % 8 of byte
i // 8, and `w.kept`, float32, the weights whose bit is 1 in that order. All other tensors are stored unchanged.
Metadata: `format`, `shapes` (JSON, of the pruned matrices), `step`, and `manifest`, the resolved one as TOML.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ratrain.atomic import write_file
from ratrain.errors import DataError, MissingError
from ratrain.recipe.prune.masks import bytes_as_rows, pack, unpack
from ratrain.recipe.prune.pruner import masks_of
from ratrain.storage.checkpoint import Checkpoint, load_newest

FORMAT = "ratrain weights 1"
_MASK, _KEPT = ".mask", ".kept"


@dataclass(frozen=True)
class Exported:
    """The result of an export: path, step, bytes of the tensors before and after packing, and sparsity."""

    path: Path
    step: int
    dense: int
    packed: int
    sparsity: float  # of the pruned matrices; 0 without any


def export(run: Path, path: Path, *, warn: Callable[[str], None], dense: bool = False) -> Exported:
    """Exports the newest checkpoint that verifies; with `dense` pruned matrices are stored unpacked, zeros included.

    Raises MissingError without a checkpoint, DataError if none verifies, CannotCreateError, DiskError.
    """
    checkpoint, found, failures = load_newest(run / "checkpoints")
    if checkpoint is None:
        raise MissingError(f"{run}: has no checkpoint yet")
    for failure in failures:
        warn(f"{failure}; going back to {found}")
    masks = masks_of(checkpoint.optimizer) or _zeros_of(checkpoint)
    tensors, shapes = packed(checkpoint.model, {} if dense else masks)
    about = {"format": FORMAT, "shapes": json.dumps(shapes), "step": str(checkpoint.step)}
    about["manifest"] = (run / "resolved.toml").read_text()
    write_file(path, [safetensors.torch.save(tensors, metadata=about)])
    weights = sum(checkpoint.model[name].numel() for name in masks)
    zeros = sum(int((checkpoint.model[name] == 0).sum()) for name in masks)
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in (checkpoint.model, tensors)]
    return Exported(path, checkpoint.step, *sizes, sparsity=zeros / weights if weights else 0.0)


def _zeros_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Derives packed masks from the zeros of the pruned matrices: finished arms of a study keep weights only."""
    pruned = checkpoint.state.get("pruning", {}).get("matrices", ())
    return {name: pack(checkpoint.model[name] != 0) for name in pruned}


def packed(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Returns the tensors of the file and the shapes of the pruned matrices; `masks` are packed."""
    tensors, shapes = {}, {}
    for name, tensor in weights.items():
        if name not in masks:
            tensors[name] = tensor.contiguous()
            continue
        stays = unpack(masks[name], tensor.shape, bytes_as_rows(tensor.device)) > 0
        tensors |= {f"{name}{_MASK}": masks[name].clone(), f"{name}{_KEPT}": tensor[stays]}
        shapes[name] = list(tensor.shape)
    return tensors, shapes


def read_export(path: Path) -> dict[str, Tensor]:
    """Reads the weights by name and restores dense matrices, with zeros for pruned weights.

    Raises MissingError, and DataError for a file of another format or with inconsistent content.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path}: is no safetensors file: {error}") from error
    if about.get("format") != FORMAT:
        raise DataError(f"{path}: was not written by ratrain export (format {about.get('format')!r}, not {FORMAT!r})")
    try:
        for name, shape in json.loads(about["shapes"]).items():
            tensors[name] = _dense(tensors.pop(f"{name}{_MASK}"), tensors.pop(f"{name}{_KEPT}"), shape)
    except (AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: contradicts itself: {type(error).__name__}: {error}") from error
    return tensors


def _dense(mask: Tensor, kept: Tensor, shape: list[int]) -> Tensor:
    whole = torch.zeros(shape)
    stays = unpack(mask, whole.shape, bytes_as_rows(mask.device)) > 0
    if int(stays.sum()) != kept.numel():
        raise ValueError(f"{int(stays.sum())} weights are in the mask, but {kept.numel()} values are in the file")
    whole[stays] = kept
    return whole
