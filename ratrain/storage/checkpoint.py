"""Atomic checkpoints, verified by SHA-256 before they are decoded.

A checkpoint is a folder `step-N` with model.safetensors, optimizer.safetensors, state.json and SHA256SUMS (in the
format of `sha256sum -c`). It is written in pieces to a temporary folder, synced and renamed. Nothing is unpickled.

If a model is divided among N processes, each also writes its rows of the divided tensors, into model-K-of-N.safetensors
and optimizer-K-of-N.safetensors. Read back, the rows are joined in the order of K, so that any number of processes can
go on from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ratrain.storage.tensor_file import Joined, Piece, Summed, encoded, largest_of, mapped

_SUMS = "SHA256SUMS"
_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_STATE = "state.json"
_ROWS = re.compile(r"(?:model|optimizer)-[0-9]+-of-([0-9]{1,5})\.safetensors")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run can continue: fp32 weights, the optimizer's tensors, and plain state."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # empty: the checkpoint holds weights only
    state: Mapping[str, Any]
    rows: Rows | None = None  # of a divided model: the rows of this process


@dataclass(frozen=True)
class Rows:
    """The rows that one process holds of divided tensors; `number` is its place, from 1 to `count`."""

    number: int
    count: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    def files(self) -> dict[str, Mapping[str, Tensor]]:
        mark = f"-{self.number}-of-{self.count}.safetensors"
        return {f"model{mark}": self.model, f"optimizer{mark}": self.optimizer}


@dataclass(frozen=True)
class Sum:
    """Size and SHA-256 of a file of a checkpoint."""

    size: int
    sha256: str


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> tuple[Path, int, str]:
    """Writes `folder/step-N`, then deletes all but the newest `keep`; returns path, bytes, and the weights' SHA-256.

    Raises CannotCreateError or DiskError; the earlier checkpoints are untouched then.
    """
    begin(folder, checkpoint)
    return commit(folder, checkpoint, write_tensors(folder, checkpoint), keep=keep)


def begin(folder: Path, checkpoint: Checkpoint) -> None:
    """Creates the empty folder that a checkpoint is written into. Raises CannotCreateError, DiskError."""
    with _failures_told(folder, checkpoint):
        folder.mkdir(parents=True, exist_ok=True)
        discard(folder, checkpoint)
        os.mkdir(_aside(folder, checkpoint))


def write_tensors(folder: Path, checkpoint: Checkpoint, *, whole: bool = True, rows: bool = True) -> dict[str, Sum]:
    """Writes the files of tensors piece by piece: the `whole` ones, and this process's `rows` of divided ones.

    Returns their sums by name. Raises CannotCreateError, DiskError; the checkpoint of a divided model is to be deleted
    by `discard` then, once no other process writes to it.
    """
    groups = {_WEIGHTS: checkpoint.model, _OPTIMIZER: checkpoint.optimizer} if whole else {}
    groups |= checkpoint.rows.files() if checkpoint.rows and rows else {}
    aside = _aside(folder, checkpoint)
    with _failures_told(folder, checkpoint):
        return {name: _write(aside / name, encoded(tensors)) for name, tensors in groups.items()}


def commit(folder: Path, checkpoint: Checkpoint, sums: Mapping[str, Sum], *, keep: int) -> tuple[Path, int, str]:
    """Completes a checkpoint whose tensors are written, with their `sums`; see `save`."""
    final, aside = folder / _name(checkpoint), _aside(folder, checkpoint)
    state = json.dumps({"format": FORMAT, "step": checkpoint.step, **checkpoint.state}).encode()
    with _failures_told(folder, checkpoint):
        sums = {name: sums[name] for name in sorted(sums)} | {_STATE: _write(aside / _STATE, [state])}
        last = _write(aside / _SUMS, [_sums({name: sum_.sha256 for name, sum_ in sums.items()})])
        sync_folder(aside)
        if final.exists():  # it did not verify and is replaced
            os.rename(final, folder / f".{final.name}.old{ASIDE}")
        os.rename(aside, final)
        sync_folder(folder)
    _prune(folder, keep, newest=checkpoint.step)
    return final, last.size + sum(each.size for each in sums.values()), sums[_WEIGHTS].sha256


def _name(checkpoint: Checkpoint) -> str:
    return f"step-{checkpoint.step:08d}"


def _aside(folder: Path, checkpoint: Checkpoint) -> Path:
    return folder / f".{_name(checkpoint)}{ASIDE}"


def _write(path: Path, pieces: Iterable[Piece]) -> Sum:
    summed = Summed(pieces)
    write_synced(path, summed)
    return Sum(summed.size, summed.sha256)


def discard(folder: Path, checkpoint: Checkpoint) -> None:
    """Deletes a checkpoint that was begun and cannot be completed."""
    shutil.rmtree(_aside(folder, checkpoint), ignore_errors=True)


@contextlib.contextmanager
def _failures_told(folder: Path, checkpoint: Checkpoint) -> Iterator[None]:
    """Raises CannotCreateError or DiskError if the block raises OSError; deletes what one process alone has written."""
    try:
        yield
    except OSError as error:
        if checkpoint.rows is None:
            discard(folder, checkpoint)
        rows = checkpoint.rows.files().values() if checkpoint.rows else ()
        need, free = stored_bytes(checkpoint.model, checkpoint.optimizer, *rows), free_bytes(folder)
        place = folder / _name(checkpoint)
        what = f"{place}: the checkpoint of {need:,} bytes cannot be written: {error.strerror} ({free:,} bytes free)"
        raise (CannotCreateError if isinstance(error, PermissionError) else DiskError)(what) from error


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
    names = _names(path, stated)
    digests = {name: sha256_of([path / name]) for name in names}
    if stated != _sums(digests):
        lines = stated.decode(errors="replace")
        bad = [name for name, digest in digests.items() if f"{digest}  {name}\n" not in lines] or [_SUMS]
        raise DataError(f"{path / bad[0]}: is damaged: its SHA-256 differs from the one recorded")
    try:
        return _decode(path, names)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is not a checkpoint of ratrain: {type(error).__name__}: {error}") from error


def _names(path: Path, sums: bytes) -> list[str]:
    """Returns the files that must be there, in the order of `sums`; a file of rows tells how many there are."""
    counts = {int(match[1]) for file in path.iterdir() if (match := _ROWS.fullmatch(file.name))}
    rows = [f"-{number}-of-{count}.safetensors" for count in counts for number in range(1, count + 1)]
    weights, optimizer = ([f"{group}{end}" for end in (".safetensors", *rows)] for group in ("model", "optimizer"))
    thin = [*sorted(weights), _STATE]
    return thin if sums.count(b"\n") == len(thin) else [*sorted(weights + optimizer), _STATE]


def _decode(path: Path, names: Sequence[str]) -> Checkpoint:
    state = json.loads(_read(path / _STATE))
    if state["format"] != FORMAT:
        raise DataError(f"{path}: checkpoint format {state['format']}; this ratrain reads format {FORMAT}")
    model, optimizer = (_tensors(path, names, of) for of in (_WEIGHTS, _OPTIMIZER))
    _require_finite(model, state.get("buffers"), path)
    return Checkpoint(step=state["step"], model=model, optimizer=optimizer, state=state)


def _tensors(path: Path, names: Sequence[str], whole: str) -> Mapping[str, Tensor]:
    """Maps the tensors of a file, and those whose rows are in the files beside it."""
    mark = whole.removesuffix(".safetensors")
    rows = [name for name in names if name.startswith(f"{mark}-")]
    rows.sort(key=lambda name: int(name.split("-")[1]))
    found = mapped(path / whole) if whole in names else {}
    return Joined(found, [mapped(path / name) for name in rows]) if rows else found


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
    write_file(newest / _SUMS, ["".join(line for line in lines if "  optimizer" not in line).encode()])
    for file in newest.glob("optimizer*.safetensors"):
        file.unlink()
    for path in older:
        _drop(path)


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
