"""Files of tensors in the safetensors format, written and verified in pieces.

A file is written from the tensors' own memory and read by mapping it, so that neither copies the whole state. (The
library's own writer makes the bytes of all tensors first. The files are equal.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

Piece = bytes | memoryview

# in the order in which the library puts tensors of different types into a file, from the last to the first
_TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.float64: "F64",
    torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
_RANK = {kind: rank for rank, kind in enumerate(_TYPES)}
_ALIGNMENT = 8
_PIECE = 2**24  # bytes of a write: smaller tensors are joined, larger ones are cut


def encoded(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Yields the bytes of a safetensors file with `tensors`, in pieces of at most 16 MiB.

    A tensor on another device is copied to the host alone, and freed before the next one. Raises KeyError for a type of
    tensor that the format does not have.
    """
    names = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name))
    header, end = {}, 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield from _even(chain([len(text).to_bytes(8, "little"), text], (_bytes(tensors[name]) for name in names)))


def _bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, on the host without a copy if it is contiguous."""
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _even(parts: Iterable[Piece]) -> Iterator[Piece]:
    """Joins small parts and cuts large ones."""
    waiting: list[Piece] = []
    size = 0
    for part in parts:
        if len(part) + size > _PIECE and waiting:
            yield b"".join(waiting)
            waiting, size = [], 0
        if len(part) >= _PIECE:
            yield from (part[at : at + _PIECE] for at in range(0, len(part), _PIECE))
        else:
            waiting.append(part)
            size += len(part)
    if waiting:
        yield b"".join(waiting)


class Summed:
    """Passes pieces on, and keeps their number of bytes and their SHA-256."""

    def __init__(self, pieces: Iterable[Piece]):
        self._pieces, self._digest, self.size = pieces, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            self._digest.update(piece)
            self.size += len(piece)
            yield piece

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def mapped(path: Path) -> dict[str, Tensor]:
    """Maps the tensors of a file into memory, on the CPU; changes to them do not reach the file.

    Their memory is aligned to 8 bytes only: clone a tensor that is computed with. Raises SafetensorError, OSError.
    """
    return safetensors.torch.load_file(path)


class Joined(Mapping[str, Tensor]):
    """Tensors by name; of divided ones the rows are joined, in the order of `rows`, each time one is read."""

    def __init__(self, whole: Mapping[str, Tensor], rows: Sequence[Mapping[str, Tensor]]):
        self._whole, self._rows = whole, rows

    def __getitem__(self, name: str) -> Tensor:
        return self._whole[name] if name in self._whole else torch.cat([each[name] for each in self._rows])

    def __iter__(self) -> Iterator[str]:
        return iter({**self._whole, **self._rows[0]})

    def __len__(self) -> int:
        return len({**self._whole, **self._rows[0]})


def largest_of(tensor: Tensor) -> Tensor:
    """Returns the largest absolute value [], NaN if there is one, without the copies that `isfinite().all()` makes."""
    return torch.linalg.vector_norm(tensor, torch.inf) if tensor.numel() else tensor.new_zeros(())
