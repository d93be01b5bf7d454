"""Atomic checkpoints, verified by SHA-256 before they are decoded.

A checkpoint is a folder `step-N` with model.safetensors, optimizer.safetensors, state.json and SHA256SUMS (in the
format of `sha256sum -c`). It is written in pieces to a temporary folder, synced and renamed. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ratrain.atomic import ASIDE, sync_folder, write_file, write_synced
from ratrain.checksum import sha256_of
from ratrain.errors import CannotCreateError, DataError, DiskError
from ratrain.storage.folder import listed, step_of
from ratrain.storage.tensor_file import Summed, encoded, largest_of, mapped

_SUMS = "SHA256SUMS"
_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_FILES = (_WEIGHTS, _OPTIMIZER, "state.json")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run can continue: fp32 weights, the optimizer's tensors, and plain state."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # empty: the checkpoint holds weights only
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> tuple[Path, int, str]:
    """Writes `folder/step-N`, then deletes all but the newest `keep`; returns path, bytes, and the weights' SHA-256.

    Raises CannotCreateError or DiskError; the earlier checkpoints are untouched then.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    aside = folder / f".{final.name}{ASIDE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size, weights = _write_folder(aside, checkpoint)
        if final.exists():  # it did not verify and is replaced
            os.rename(final, folder / f".{final.name}.old{ASIDE}")
        os.rename(aside, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        need, free = stored_bytes(checkpoint.model, checkpoint.optimizer), free_bytes(folder)
        what = f"{final}: the checkpoint of {need:,} bytes cannot be written: {error.strerror} ({free:,} bytes free)"
        raise (CannotCreateError if isinstance(error, PermissionError) else DiskError)(what) from error
    _prune(folder, keep, newest=checkpoint.step)
    return final, size, weights


def stored_bytes(*groups: Mapping[str, Tensor]) -> int:
    """Returns the bytes of the tensors in a checkpoint, which make up nearly all of its size."""
    return sum(tensor.nbytes for group in groups for tensor in group.values())


def check_room(folder: Path, each: int, *, keep: int) -> None:
    """Raises DiskError if the disk has no room for `keep` checkpoints of `each` bytes and one in writing."""
    there = sum(file.stat().st_size for path in listed(folder) for file in path.iterdir())
    need, free = (keep + 1) * each - there, free_bytes(folder)
    if need > free:
        raise DiskError(
            f"{folder}: {keep + 1} checkpoints of {each:,} bytes need {need:,} bytes more, {free:,} are free; "
            "make room, or choose another --out"
        )


def free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk of `folder`, which need not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _sums(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


def _write_folder(folder: Path, checkpoint: Checkpoint) -> tuple[int, str]:
    """Writes the files of a checkpoint piece by piece; returns their bytes and the weights' SHA-256."""
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    state = json.dumps({"format": FORMAT, "step": checkpoint.step, **checkpoint.state}).encode()
    digests, size = {}, 0
    for name, pieces in {
        _WEIGHTS: encoded(checkpoint.model),
        _OPTIMIZER: encoded(checkpoint.optimizer),
        "state.json": [state],
        _SUMS: (_sums(digests) for _ in range(1)),  # once the others are written
    }.items():
        summed = Summed(pieces)
        write_synced(folder / name, summed)
        digests[name] = summed.sha256
        size += summed.size
    sync_folder(folder)
    return size, digests[_WEIGHTS]


def _prune(folder: Path, keep: int, *, newest: int) -> None:
    """Deletes all but the last `keep` checkpoints up to step `newest`, and leftovers of killed processes.

    Later checkpoints are ignored: they did not verify, or the run would have resumed from them.
    """
    for left in folder.glob(f".step-*{ASIDE}"):
        shutil.rmtree(left, ignore_errors=True)
    for old in [path for path in listed(folder) if step_of(path) <= newest][keep:]:
        _drop(old)


def _drop(old: Path) -> None:
    aside = old.with_name(f".{old.name}{ASIDE}")
    with contextlib.suppress(OSError):  # an old checkpoint that remains is harmless
        os.rename(old, aside)  # so that a partly deleted checkpoint is never listed
        shutil.rmtree(aside)


def load(path: Path) -> Checkpoint:
    """Loads and verifies the checkpoint at `path`, its tensors mapped. Raises DataError that names file and fault."""
    stated = _read(path / _SUMS)
    names = [name for name in _FILES if name != _OPTIMIZER or not _is_thin(stated)]
    digests = {name: sha256_of([path / name]) for name in names}
    if stated != _sums(digests):
        lines = stated.decode(errors="replace")
        bad = [name for name, digest in digests.items() if f"{digest}  {name}\n" not in lines] or [_SUMS]
        raise DataError(f"{path / bad[0]}: is damaged: its SHA-256 differs from the one recorded")
    try:
        return _decode(path, names)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is not a checkpoint of ratrain: {type(error).__name__}: {error}") from error


def _decode(path: Path, names: Sequence[str]) -> Checkpoint:
    state = json.loads(_read(path / "state.json"))
    if state["format"] != FORMAT:
        raise DataError(f"{path}: checkpoint format {state['format']}; this ratrain reads format {FORMAT}")
    model = mapped(path / _WEIGHTS)
    _require_finite(model, state.get("buffers"), path)
    return Checkpoint(
        step=state["step"],
        model=model,
        optimizer=mapped(path / _OPTIMIZER) if _OPTIMIZER in names else {},
        state=state,
    )


def _require_finite(model: Mapping[str, Tensor], buffers: Sequence[str] | None, path: Path) -> None:
    """Raises DataError if a weight is not finite: the run had diverged, and cannot continue from there.

    Older checkpoints do not name their buffers, which may hold valid infinities; in those only NaN is refused.
    """
    for name, tensor in model.items():
        if name in (buffers or ()) or not tensor.is_floating_point():
            continue
        if (largest := largest_of(tensor)).isnan() or (buffers is not None and not largest.isfinite()):
            raise DataError(f"{path}: {name} is not finite: the run had diverged when this was written")


def thin(folder: Path) -> None:
    """Deletes the optimizer state of the newest checkpoint in `folder`, once verified, and all older checkpoints.

    If the process is killed half-way, the checkpoint holds weights only or is still complete.
    """
    newest, *older = listed(folder)
    load(newest)
    lines = _read(newest / _SUMS).decode().splitlines(keepends=True)
    write_file(newest / _SUMS, ["".join(line for line in lines if not line.endswith(f"  {_OPTIMIZER}\n")).encode()])
    (newest / _OPTIMIZER).unlink(missing_ok=True)
    for path in older:
        _drop(path)


def _is_thin(sums: bytes) -> bool:
    return sums.count(b"\n") == len(_FILES) - 1


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def load_newest(folder: Path) -> tuple[Checkpoint | None, Path | None, tuple[str, ...]]:
    """Returns the newest checkpoint that verifies, its path, and a message for each newer one that does not.

    Returns (None, None, ()) if there is no checkpoint. Raises DataError if there are checkpoints but none verifies.
    """
    failures = []
    for path in listed(folder):
        try:
            return load(path), path, tuple(failures)
        except DataError as error:
            failures.append(str(error))
    if failures:
        advice = "no checkpoint of this run verifies; --fresh moves the run aside and starts over"
        raise DataError("\n".join([*failures, advice]))
    return None, None, ()


def require_same_tensors(expected: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raises DataError unless checkpoint and model have the same tensors, by name and shape."""
    have = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    need = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    odd = sorted(name for name in have.keys() | need.keys() if have.get(name) != need.get(name))
    if odd:
        what = f"{odd[0]}: {have.get(odd[0], 'absent')} saved, {need.get(odd[0], 'absent')} in the model"
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(f"the checkpoint of step {checkpoint.step} does not fit the model: {what}{more}")


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the optimizer's tensors by `parameter|key`, and its plain values by parameter and key."""
    tensors, plain = {}, {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}|{key}"] = value
            else:
                plain.setdefault(names[index], {})[key] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Restores the state from `flatten_optimizer`; hyper-parameters stay those of the manifest."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {index[name]: dict(entry) for name, entry in plain.items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("|")
        state.setdefault(index[name], {})[key] = tensor.clone()  # it may be mapped from a file
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
