"""Describes a corpus: tokens, documents and their lengths, a sample of the text, overlap of training and validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ratrain.config.recall import MIXTURE, RECALL
from ratrain.config.schema import DataSection
from ratrain.data.corpus import EMBEDDED, Corpus, open_corpus
from ratrain.data.overlap import Overlap
from ratrain.data.shards import TokenStream, read_meta
from ratrain.data.tokenizer import VOCAB, byte_lengths
from ratrain.errors import UsageError

_CHUNK = 2**24  # tokens read at a time


@dataclass(frozen=True)
class Split:
    """Sizes of one split; lengths of its documents are in tokens, without the end-of-text token."""

    tokens: int
    bytes: int  # of text
    documents: int
    shortest: int
    median: int
    longest: int


@dataclass(frozen=True)
class Description:
    """A corpus, its splits by name, the first characters of its first training document, and the overlap."""

    source: str
    tokenizer: str
    fingerprint: str
    splits: dict[str, Split]
    sample: str
    overlap: Overlap


def describe(source: str, *, tokenizer: str | None = None, letters: int = 300) -> Description:
    """Reads the whole corpus `source`, a folder or "shakespeare". Raises as `open_corpus`.

    `tokenizer` is that of token files without meta.json (gpt2 unless given), or of the embedded text.
    """
    if source in (*RECALL, MIXTURE):
        raise UsageError(f"{source}: expected a folder of token shards, or shakespeare")
    folder = Path(source).expanduser()
    meta = read_meta(folder) if source != EMBEDDED and folder.is_dir() else None
    default = "shakespeare2k" if source == EMBEDDED else "gpt2"
    name = tokenizer or (meta["tokenizer"] if meta else default)
    size = VOCAB.get(name, 0)  # open_corpus reports an unknown name
    corpus = open_corpus(DataSection(source=source, tokenizer=name), vocab_size=size)
    splits = {split: _split(getattr(corpus, split), name) for split in ("train", "val")}
    return Description(source, name, corpus.fingerprint, splits, _sample(corpus, letters), corpus.overlap())


def _split(stream: TokenStream, tokenizer: str) -> Split:
    eot, lengths_of = VOCAB[tokenizer] - 1, byte_lengths(tokenizer)
    begins, size = [], 0
    for at in range(0, len(stream), _CHUNK):
        ids = stream.read(at, min(_CHUNK, len(stream) - at))
        begins.append(np.flatnonzero(ids == eot) + at)
        size += int(lengths_of[ids].sum())
    starts = np.concatenate(begins)
    edges = np.concatenate([starts[:1] if len(starts) and not starts[0] else [-1], starts[starts > 0], [len(stream)]])
    lengths = np.diff(edges) - 1
    sizes = (int(lengths.min()), int(np.median(lengths)), int(lengths.max()))
    return Split(len(stream), size, len(lengths), *sizes)


def _sample(corpus: Corpus, letters: int) -> str:
    tokens = corpus.train.read(0, min(len(corpus.train), letters + 1)).tolist()
    eot = corpus.tokenizer.eot_token
    first = tokens[tokens[0] == eot :]
    document = first[: first.index(eot)] if eot in first else first
    return corpus.tokenizer.decode(document)[:letters]
