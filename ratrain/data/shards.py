"""Token files: llm.c `.bin` (a header, then uint16 ids), nanoGPT `.bin` (uint16 ids alone), and ratrain's shards.

ratrain's shards are llm.c files beside a `meta.json` that records their origin. Files are validated before use.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ratrain.atomic import write_file
from ratrain.errors import DataError, MissingError

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024  # 256 x int32
MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32
NANOGPT = ("train.bin", "val.bin")  # the only names that may go without a header
META, FORMAT = "meta.json", "ratrain-shards"

_U16 = np.dtype("<u2")
_CHUNK = 2**24  # tokens per step of a scan
_FOREIGN = {
    20240801: "llm.c's Llama-3 format (uint32 ids); ratrain reads GPT-2 shards of uint16 ids",
    20240522: "llm.c's multiple-choice evaluation format (HellaSwag); it holds questions, not a token stream",
}


class FileTokens:
    """`count` ids in a file from the byte `offset` on; slicing reads them, uint16 [n].

    The file is read instead of mapped: truncation during a job then raises DataError, while a mapping would end the
    process with SIGBUS.
    """

    def __init__(self, path: Path, offset: int, count: int):
        self._path, self._offset, self._count = path, offset, count
        self._descriptor = _descriptor(path)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self._count)
        at, left, pieces = self._offset + 2 * start, 2 * max(0, stop - start), []
        while left:
            pieces.append(self._piece(at, left))
            at, left = at + len(pieces[-1]), left - len(pieces[-1])
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), _U16)

    def _piece(self, at: int, size: int) -> bytes:
        """Reads up to `size` bytes from `at` on; one call returns less for gigabytes. Raises DataError."""
        try:
            piece = os.pread(self._descriptor, size, at)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
        if not piece:
            right = self._offset + 2 * self._count
            raise DataError(f"{self._path}: was cut while in use: it had {right} bytes, now {at} at most; put it back")
        return piece


def _descriptor(path: Path) -> int:
    """Opens the file for reading; raises the soft limit on open files if it is reached, e.g. by a thousand shards."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True)
class Shard:
    """One open token file: its path and its ids, [tokens], in memory or in the file."""

    path: Path
    tokens: np.ndarray | FileTokens


class TokenStream:
    """Consecutive shards, read as one array of tokens."""

    def __init__(self, shards: Sequence[Shard], *, name: str):
        self.shards, self.name = tuple(shards), name
        self._ends = np.cumsum([len(shard.tokens) for shard in self.shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def read(self, offset: int, count: int) -> np.ndarray:
        """Reads the tokens from `offset` on, uint16 [count]. Raises IndexError beyond the end."""
        if offset < 0 or count < 0 or offset + count > len(self):
            raise IndexError(f"{self.name}: tokens {offset} to {offset + count} of {len(self)}")
        first = int(np.searchsorted(self._ends, offset, side="right"))
        parts, left = [], count
        for shard, end in zip(self.shards[first:], self._ends[first:], strict=True):
            at = offset + count - left - (int(end) - len(shard.tokens))
            parts.append(shard.tokens[at : at + left])
            left -= len(parts[-1])
            if not left:
                break
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, _U16)])


def open_shard(path: Path) -> Shard:
    """Opens a llm.c file, or a headerless file named like nanoGPT's. Raises DataError, MissingError.

    A headerless file cannot be mistaken for a llm.c file: its first id would be 55432, which neither vocabulary has.
    """
    size = _size(path)
    try:
        with open(_descriptor(path), "rb") as file:
            head = file.read(12)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from error
    offset = _header_bytes(path, np.frombuffer(head[: len(head) // 4 * 4], "<i4"), size)
    return Shard(path, FileTokens(path, offset, (size - offset) // 2))


def _size(path: Path) -> int:
    """Returns the size of the regular file `path` in bytes. Raises MissingError, DataError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; `ratrain prepare INPUT... --out {path.parent}` makes it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DataError(f"{path}: is {kind}; expected a file of token ids")
    if not status.st_size:
        raise DataError(f"{path}: is empty; expected a file of token ids")
    return status.st_size


def _header_bytes(path: Path, header: np.ndarray, size: int) -> int:
    """Returns the bytes before the first id; `header` is the first int32 words of the file, at most three."""
    magic = int(header[0]) if len(header) else None
    if magic == MAGIC:
        return _llmc_header(path, header, size)
    if magic is not None and int(header[:1].byteswap()[0]) == MAGIC:
        raise DataError(f"{path}: is byte-swapped (written on a big-endian machine); write it little-endian")
    if magic in _FOREIGN:
        raise DataError(f"{path}: is in {_FOREIGN[magic]}")
    if path.name not in NANOGPT:
        found = f"magic {magic}" if magic is not None else f"{size} bytes"
        raise DataError(
            f"{path}: is no token file: {found}, expected llm.c's {MAGIC}"
            f" (headerless ids are read from {' and '.join(NANOGPT)} only)"
        )
    if size % 2:
        raise DataError(f"{path}: {size} bytes is an odd size; uint16 ids take two bytes each")
    return 0


def _llmc_header(path: Path, header: np.ndarray, size: int) -> int:
    if size < HEADER_BYTES:
        raise DataError(f"{path}: is too short: {size} bytes, a llm.c header alone takes {HEADER_BYTES}")
    version, count = int(header[1]), int(header[2])
    if version != VERSION:
        raise DataError(f"{path}: llm.c format version {version}; ratrain reads version {VERSION}")
    right = HEADER_BYTES + 2 * count
    if count < 0 or size != right:
        raise DataError(f"{path}: header says {count} tokens = {right} bytes, file has {size} bytes; copy it again")
    if not count:
        raise DataError(f"{path}: holds no tokens")
    return HEADER_BYTES


def check_ids(shard: Shard, *, vocab_size: int) -> None:
    """Raises DataError if an id is not below `vocab_size`; one pass over the file."""
    for start in range(0, len(shard.tokens), _CHUNK):
        chunk = shard.tokens[start : start + _CHUNK]
        if int(chunk.max()) >= vocab_size:
            at = int(np.argmax(chunk >= vocab_size))
            raise DataError(
                f"{shard.path}: token {start + at} is {chunk[at]}, but the ids of a vocabulary of {vocab_size}"
                f" end at {vocab_size - 1}; was it made with another tokenizer?"
            )


def encode_shard(tokens: np.ndarray) -> list[bytes | memoryview]:
    """Returns the parts of a llm.c file that holds `tokens`, uint16 [n], n < 2^31."""
    assert len(tokens) <= MAX_SHARD_TOKENS
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    return [header.tobytes(), np.ascontiguousarray(tokens, _U16).view(np.uint8).data]


def write_shard(path: Path, tokens: np.ndarray) -> dict[str, Any]:
    """Writes `tokens`, uint16 [n], as a llm.c file; returns its entry in meta.json: file, tokens, sha256."""
    parts = encode_shard(tokens)
    write_file(path, parts)
    return shard_entry(path.name, parts)


def shard_entry(name: str, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Returns the meta.json entry of a shard whose file consists of `parts`."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return {"file": name, "tokens": (size - HEADER_BYTES) // 2, "sha256": digest.hexdigest()}


def write_meta(folder: Path, *, tokenizer: str, vocab_size: int, splits: dict[str, list[dict]], **more: Any) -> None:
    """Writes meta.json, the last file of a prepared folder: its presence marks the folder as complete."""
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "eot": vocab_size - 1,
        "eot_placement": "before each document",
        "tokens": {split: sum(entry["tokens"] for entry in entries) for split, entries in splits.items()},
        "splits": splits,
        **more,
    }
    write_file(folder / META, [(json.dumps(meta, indent=1) + "\n").encode()])


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Reads the meta.json of a prepared folder, None if there is none. Raises DataError."""
    path = folder / META
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}; `ratrain prepare --fresh` makes it anew") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise DataError(f"{path}: is not a {FORMAT} version {VERSION} description")
    if not isinstance(meta.get("tokenizer"), str) or not _splits_are_sound(meta.get("splits")):
        raise DataError(f"{path}: lacks its tokenizer or its shards; `ratrain prepare --fresh` makes it anew")
    return meta


def _splits_are_sound(splits: Any) -> bool:
    """Whether `splits` is {split: [{file, tokens, sha256}]} and names no file outside its folder."""
    try:
        entries = [entry for split in ("train", "val") for entry in splits[split]]
        return all(
            os.path.basename(entry["file"]) == entry["file"] != ""
            and type(entry["tokens"]) is int
            and isinstance(entry["sha256"], str)
            for entry in entries
        )
    except (KeyError, TypeError):
        return False
