"""Streams documents from files: `.txt` split at `<|endoftext|>`, `.jsonl(.gz)` one per line, `.parquet` one per row."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ratrain.data.fields import text_of
from ratrain.data.hub import HubFile, read_parquet
from ratrain.data.tokenizer import END_OF_TEXT
from ratrain.errors import DataError, MissingError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_PIECE = 2**20  # bytes per read
_ENDS = 2**20  # bytes at each end of a source that its hash covers


@dataclass(frozen=True)
class Document:
    """A text with its position: the index of its file, its number in that file from 1, and the bytes read by its end.

    `nulls` is the number of records with null text since the previous document.
    """

    text: str
    file: int
    number: int
    position: int
    nulls: int = 0


def find_sources(inputs: Sequence[Path]) -> list[Path]:
    """Lists the text files among `inputs` and, in sorted order, inside folders. Raises MissingError, DataError."""
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
    """Returns name, size and a hash of both ends of a source, which detects a changed file without a full read.

    A file on the hub has name and size alone.
    """
    if isinstance(path, HubFile):
        return {"name": path.url, "bytes": path.bytes}  # the URL names the commit
    with _opened(path) as file:
        head = file.read(_ENDS)
        size = file.seek(0, 2)
        file.seek(max(len(head), size - _ENDS))
        return {"name": str(path), "bytes": size, "sha256_of_ends": hashlib.sha256(head + file.read()).hexdigest()}


def read_documents(
    sources: Sequence[Path | HubFile],
    *,
    field: str,
    file: int = 0,
    number: int = 0,
    pass_over: Callable[[int], None] = lambda count: None,
) -> Iterator[Document]:
    """Yields every document that is not blank, in order, after document `number` of source `file`.

    Calls `pass_over` with the number of records with null text before each document and at the end of each source.
    """
    for index in range(file, len(sources)):
        skip, nulls = number if index == file else 0, 0
        for count, text, position in _read(sources[index], field, skip):
            if text is None:
                nulls += 1
            elif count > skip:
                pass_over(nulls)
                yield Document(text, index, count, position, nulls)
                nulls = 0
            else:
                nulls = 0  # counted before the resume
        pass_over(nulls)


def _read(source: Path | HubFile, field: str, skip: int) -> Iterator[tuple[int, str | None, int]]:
    """Yields (number, text, bytes read) of each document; a null has text None and, in JSON lines, the last number."""
    if isinstance(source, HubFile) or source.suffix == ".parquet":
        # the library does not report the byte position of a row in a Parquet file
        yield from ((count, text, 0) for count, text in read_parquet(source, field, skip))
        return
    count = 0
    for text, position in _read_txt(source) if source.suffix == ".txt" else _read_jsonl(source, field):
        count += text is not None
        yield count, text, position


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it readable") from error


def _read_txt(path: Path) -> Iterator[tuple[str, int]]:
    """Yields (text, bytes read) of each document; a newline right after a separator belongs to the separator."""
    mark = ""
    for text, position in _between_separators(path):
        if text.strip():
            yield text.removeprefix(mark), position
        mark = "\n"


def _between_separators(path: Path) -> Iterator[tuple[str, int]]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    parts: list[str] = []  # of the current document
    tail, position = "", 0  # the tail may hold the start of a separator that continues in the next piece
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


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[str | None, int]]:
    """Yields (text, bytes of the file read) of each line's `field`, None for null; skips blank lines and texts."""
    with _opened(path) as raw:
        lines = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        for number, line in enumerate(_lines(lines, path), 1):
            if line.strip():
                text = _field_of(line, field, f"{path}:{number}")
                if text is None or text.strip():
                    yield text, raw.tell()


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    try:
        yield from iter(file.readline, b"")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}; copy it again") from error


def _field_of(line: bytes, field: str, where: str) -> str | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON: {error}; expected one object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: is a JSON {type(record).__name__}; expected an object with a field {field!r}")
    return text_of(record, field, where)
