"""`ratrain prepare`: converts text files or named sets to shards for `data.source`.

Streaming, parallel, resumable, atomic.

The split of a document depends on its text alone, so that repeated texts join the same split. The first two documents
are an exception (train, then val), so that two documents suffice. With `--val-fraction 0` everything is training data,
and a `*val*.bin` shard must be added to the folder before training. The output depends on the inputs and options,
never on --jobs or on the point at which an earlier attempt stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ratrain.data.documents import Document, describe_source, find_sources, read_documents
from ratrain.data.hub import SETS, HubFile, hub_files
from ratrain.data.shard_writer import ShardWriter, recorded_recipe
from ratrain.data.shards import MAX_SHARD_TOKENS
from ratrain.data.tokenizer import VOCAB, load_tokenizer
from ratrain.errors import CannotCreateError, DataError, MemoryShortError, UsageError
from ratrain.lock import lock

_CHUNK_LETTERS, _CHUNK_DOCUMENTS = 2**19, 1024  # a worker's task ends at the first of these


@dataclass(frozen=True)
class Progress:
    """Progress of a preparation: documents and tokens written, and the completed share of the work."""

    documents: int
    tokens: int
    share: float


@dataclass(frozen=True)
class Summary:
    """Contents of a prepared folder; `kept` documents were present when the call began.

    `skipped` is the number of records with null text.
    """

    folder: Path
    documents: dict[str, int]
    tokens: dict[str, int]
    shards: dict[str, int]
    kept: int
    skipped: int = 0


def prepare(
    inputs: Sequence[Path],
    out: Path,
    *,
    tokenizer: str,
    val_fraction: float,
    shard_tokens: int,
    field: str = "text",
    tokens: int = 0,
    jobs: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
    fresh: bool = False,
) -> Summary:
    """Tokenises `inputs` into shards in `out`; resumes a killed call with the same arguments.

    If `tokens` is not 0, ends with the document that reaches it. Raises UsageError, MissingError, DataError,
    UnavailableError, CannotCreateError (`out` is of another preparation, or in use), MemoryShortError.
    """
    _check_options(val_fraction, shard_tokens, tokens, jobs)
    load_tokenizer(tokenizer)
    sources = _sources(inputs, out, fresh=fresh)
    described = [describe_source(path) for path in sources]
    recipe = {"val_fraction": val_fraction, "shard_tokens": shard_tokens, "field": field, "sources": described}
    recipe |= {"tokens": tokens} if tokens else {}
    if fresh:
        _move_aside(out)
    with _locked(out):
        skipped = 0
        writer = ShardWriter.open(out, tokenizer=tokenizer, vocab_size=VOCAB[tokenizer], recipe=recipe)
        kept = writer.documents
        if not writer.is_complete:
            sizes = [source["bytes"] for source in described]
            try:
                skipped = _write_all(writer, sources, sizes, field=field, jobs=jobs, progress=progress)
            except DataError:
                writer.abandon()
                raise
        return Summary(out, dict(writer.counts), writer.tokens(), writer.shard_counts(), kept, skipped)


def _sources(inputs: Sequence[Path], out: Path, *, fresh: bool) -> list[Path | HubFile]:
    """Lists the files of all inputs; a named set keeps the files recorded in `out`, unless `fresh`."""
    sources: list[Path | HubFile] = []
    for path in inputs:
        if str(path) in SETS and not path.exists():
            recorded = [] if fresh else recorded_recipe(out).get("sources", [])
            sources += hub_files(str(path), recorded)
        else:
            sources += find_sources([path])
    return sources


def _check_options(val_fraction: float, shard_tokens: int, tokens: int, jobs: int) -> None:
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction}: must be at least 0 and below 1")
    if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
        raise UsageError(f"--shard-tokens {shard_tokens}: must be between 1 and {MAX_SHARD_TOKENS}")
    if tokens < 0:
        raise UsageError(f"--tokens {tokens}: must be at least 1, or 0 for all there are")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be at least 1")


def _move_aside(out: Path) -> None:
    """Renames `out` to the first free `out.old-N`; deletes nothing."""
    if out.exists():
        free = next(p for n in itertools.count(1) if not (p := out.with_name(f"{out.name}.old-{n}")).exists())
        out.rename(free)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Creates the folder and locks it. Raises CannotCreateError if another process holds the lock."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = lock(out)
    except BlockingIOError:
        raise CannotCreateError(f"{out}: another process is preparing it; wait for it to end") from None
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be created: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _write_all(
    writer: ShardWriter,
    sources: Sequence[Path | HubFile],
    sizes: Sequence[int],
    *,
    field: str,
    jobs: int,
    progress: Callable[[Progress], None],
) -> int:
    """Encodes and writes the remaining documents, then meta.json; returns the number of records with null text.

    Raises DataError if there is no document, or only one and it would have to be split into train and val.
    """
    passed = [writer.nulls]
    documents = read_documents(sources, field=field, file=writer.file, number=writer.number, pass_over=passed.append)
    before, limit = list(itertools.accumulate(sizes, initial=0)), writer.recipe.get("tokens", math.inf)
    written = sum(writer.tokens().values())
    with closing(_encode_chunks(_chunks(documents), writer.tokenizer, jobs)) as chunks:
        for chunk, encoded in chunks:
            for document, (tokens, chance) in zip(chunk, encoded, strict=True):
                if written >= limit:
                    break
                split = _split(writer.documents, chance, writer.recipe["val_fraction"])
                writer.nulls += document.nulls
                writer.add(split, tokens, file=document.file, number=document.number)
                written += len(tokens)
            read = before[chunk[-1].file] + chunk[-1].position
            progress(Progress(writer.documents, written, max(read / max(before[-1], 1), min(written / limit, 1))))
            if written >= limit:
                break
    if not writer.documents:
        raise DataError(f"{sources[0]}: no input holds any text")
    if writer.documents == 1 and writer.recipe["val_fraction"]:
        raise DataError(
            f"{sources[0]}: is one document, which cannot be split into train and val; separate its documents with"
            " <|endoftext|>, add another input, or give --val-fraction 0 and bring val shards of your own"
        )
    writer.finish()
    return writer.nulls if written >= limit else sum(passed)  # records read ahead beyond the limit do not count


def _split(index: int, chance: float, val_fraction: float) -> str:
    """Returns 'train' or 'val' for document `index` of the whole input."""
    if val_fraction and index < 2:
        return ("train", "val")[index]
    return "val" if chance < val_fraction else "train"


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups documents into chunks large enough for one task of a worker process."""
    chunk, letters = [], 0
    for document in documents:
        chunk.append(document)
        letters += len(document.text)
        if letters >= _CHUNK_LETTERS or len(chunk) >= _CHUNK_DOCUMENTS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


_Encoded = list[tuple[np.ndarray, float]]  # each document's ids, uint16 [n], and its draw in [0, 1)


def _encode_chunks(
    chunks: Iterable[list[Document]], tokenizer: str, jobs: int
) -> Generator[tuple[list[Document], _Encoded], None, None]:
    """Yields each chunk with its encoding, in order; bounds memory by about two chunks in flight per job."""
    if jobs == 1:
        yield from ((chunk, _encode([d.text for d in chunk], tokenizer)) for chunk in chunks)
        return
    waiting: deque[tuple[list[Document], Future[_Encoded]]] = deque()
    # spawn: a fork of a process with threads (torch, tokenizers) may deadlock
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_ignore_interrupts) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_encode, [d.text for d in chunk], tokenizer)))
                if len(waiting) > 2 * jobs:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _result(chunk: list[Document], future: Future[_Encoded]) -> tuple[list[Document], _Encoded]:
    try:
        return chunk, future.result()
    except BrokenProcessPool as error:
        raise MemoryShortError(
            "a process of `ratrain prepare` was killed, likely for memory; the same command with fewer --jobs continues"
        ) from error


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops the pool


def _encode(texts: Sequence[str], tokenizer: str) -> _Encoded:
    """Encodes each text after `<|endoftext|>`; a literal `<|endoftext|>` inside a text stays text."""
    encoding = load_tokenizer(tokenizer)
    encoded = []
    for text in texts:
        ids = np.array([encoding.eot_token, *encoding.encode_ordinary(text)], np.uint16)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        encoded.append((ids, int.from_bytes(digest, "big") / 2**64))
    return encoded
