"""Documents out of files: `.txt` split at `<|endoftext|>`, `.jsonl(.gz)` one a line, `.parquet` one a row; streamed."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ratrain.errors import DataError, MissingError
from ratrain.recipe.hub import HubFile, read_parquet
from ratrain.recipe.tokenizer import END_OF_TEXT

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_PIECE = 2**20  # bytes per read
_ENDS = 2**20  # bytes at each end of a source that its hash covers


@dataclass(frozen=True)
class Document:
    """A text, and where it ends: the index of its file, its number in that file from 1, and the bytes read by then."""

    text: str
    file: int
    number: int
    position: int


def find_sources(inputs: Sequence[Path]) -> list[Path]:
    """The text files among `inputs` and, in sorted order, inside folders. Raises MissingError, DataError."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.name.endswith(SUFFIXES) and file.is_file()]
            if not inside:
                raise MissingError(f"{path}: holds no {', '.join(SUFFIXES)} file")
            found += inside
        elif not path.exists():
            raise MissingError(f"{path}: no such file; inputs are {', '.join(SUFFIXES)} files or folders of them")
        elif not path.is_file():
            raise DataError(f"{path}: is not a regular file")
        elif not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: cannot be read as text; expected a name that ends in {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def describe_source(path: Path | HubFile) -> dict[str, Any]:
    """Name, size and a hash of both ends of a source: tells a changed file without reading all of it."""
    if isinstance(path, HubFile):
        return {"name": path.url, "bytes": path.bytes}  # the URL names the commit
    with _opened(path) as file:
        head = file.read(_ENDS)
        size = file.seek(0, 2)
        file.seek(max(len(head), size - _ENDS))
        return {"name": str(path), "bytes": size, "sha256_of_ends": hashlib.sha256(head + file.read()).hexdigest()}


def read_documents(
    sources: Sequence[Path | HubFile], *, field: str, file: int = 0, number: int = 0
) -> Iterator[Document]:
    """Every document that is not blank, in order, after the one with this `number` of source `file`."""
    for index in range(file, len(sources)):
        path = sources[index]
        skip = number if index == file else 0
        if isinstance(path, HubFile) or path.suffix == ".parquet":
            # how far into a Parquet file a row is, the library does not say
            yield from (Document(text, index, count, 0) for count, text in read_parquet(path, field, skip))
            continue
        texts = _read_txt(path) if path.suffix == ".txt" else _read_jsonl(path, field)
        for count, (text, position) in enumerate(texts, 1):
            if count > skip:
                yield Document(text, index, count, position)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from error


def _read_txt(path: Path) -> Iterator[tuple[str, int]]:
    """(text, bytes read) of each document; a newline right after a separator belongs to the separator."""
    mark = ""
    for text, position in _between_separators(path):
        if text.strip():
            yield text.removeprefix(mark), position
        mark = "\n"


def _between_separators(path: Path) -> Iterator[tuple[str, int]]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    parts: list[str] = []  # of the document that is being read
    tail, position = "", 0  # the tail may begin a separator that the next piece ends
    with _opened(path) as file:
        while piece := file.read(_PIECE):
            position += len(piece)
            *ends, tail = (tail + _decoded(decoder, piece, path, position)).split(END_OF_TEXT)
            for end in ends:
                yield "".join([*parts, end]), position
                parts.clear()
            cut = max(len(tail) - len(END_OF_TEXT) + 1, 0)
            parts.append(tail[:cut])
            tail = tail[cut:]
        tail += _decoded(decoder, b"", path, position)
    yield "".join([*parts, tail]), position


def _decoded(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path, position: int) -> str:
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        at = position - len(error.object) + error.start
        raise DataError(f"{path}: is not UTF-8: byte {at} is 0x{error.object[error.start]:02x}; convert it") from error


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """(text, bytes of the file read) of each line's `field`; blank lines and blank texts are passed over."""
    with _opened(path) as raw:
        lines = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        for number, line in enumerate(_lines(lines, path), 1):
            if line.strip():
                text = _field_of(line, field, f"{path}:{number}")
                if text.strip():
                    yield text, raw.tell()


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    try:
        yield from iter(file.readline, b"")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}; copy it again") from error


def _field_of(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON: {error}; expected one object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: is a JSON {type(record).__name__}; expected an object with a field {field!r}")
    text = record.get(field)
    if not isinstance(text, str):
        names = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{where}: has no text in field {field!r} (its fields: {names}); set --field")
    return text
