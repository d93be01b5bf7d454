"""Finds validation text that also occurs in the training text: repeated documents and long n-grams.

Both are compared after normalisation: case, spacing and punctuation do not count, nor how words are divided into
tokens. A document is compared by a hash of its letters and digits, n-grams are of 16 words. Either text is read once.
Of the validation text at most about 2^23 n-grams are kept, chosen by their hashes (Manber 1994, "Finding similar files
in a large file system"), so that all repetitions of one are seen, and the hash of every document.
Sources: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C; Lee et al. 2022, arXiv:2107.06499.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ratrain.data.shards import TokenStream
from ratrain.data.tokenizer import ranks_of

VERSION = 2  # increment when the same texts give another result
LENGTH = 16  # words of an n-gram, a power of 2
_SAMPLE = 2**23  # n-grams of the validation text that are kept at most
_CHUNK = 2**20  # tokens read at a time
_PLACES = 5  # told
_BASE = 0x9E3779B97F4A7C15  # odd, of the polynomial hashes modulo 2^64
_BITS = 24  # of the index into a table of the hashes that occur


@dataclass(frozen=True)
class Place:
    """A passage of the validation text, and the training token at which the same text was first met."""

    val_token: int
    tokens: int
    train_token: int


@dataclass(frozen=True)
class Overlap:
    """The validation n-grams looked for and found in the training text, and the documents that occur there whole.

    `share`, in [0, 1], is the larger of the found n-grams' share and the repeated documents' share of the tokens.
    """

    ngrams: int
    found: int
    documents: int
    repeated: int
    share: float
    places: tuple[Place, ...]  # the longest passages

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Overlap:
        return cls(**{**record, "places": tuple(Place(**place) for place in record["places"])})


def find_overlap(train: Sequence[TokenStream], val: Sequence[TokenStream], tokenizer: str, *, eot: int) -> Overlap:
    """Compares all of `val` with all of `train`, token streams of one tokenizer in which `eot` begins a document."""
    letters = _letters_of(tokenizer)
    table = _Table(val, letters, eot)
    for stream, before in zip(train, _starts(train), strict=True):
        for chunk in _chunks(stream, letters, eot, before):
            table.look_up(chunk)
    return table.result()


@dataclass(frozen=True)
class _Letters:
    """Of each token of a vocabulary: its letters and digits in one case, as numbers."""

    hash: np.ndarray  # uint64 [V]: polynomial over their bytes
    count: np.ndarray  # int64 [V]: bytes
    leads: np.ndarray  # bool [V]: whether something else comes before them, so that a word begins


@functools.cache
def _letters_of(tokenizer: str) -> _Letters:
    spelt = [_normalised(token) for token in ranks_of(tokenizer)] + [b""]  # the last is end-of-text
    leads = [not _normalised(token[:1]) for token in ranks_of(tokenizer)] + [True]
    hashes, counts = [_polynomial(word) for word in spelt], [len(word) for word in spelt]
    return _Letters(np.array(hashes, np.uint64), np.array(counts, np.int64), np.array(leads))


def _normalised(token: bytes) -> bytes:
    try:
        return "".join(letter for letter in token.decode().casefold() if letter.isalnum()).encode()
    except UnicodeDecodeError:  # a part of a character
        return bytes(byte for byte in token.lower() if byte >= 0x80 or chr(byte).isalnum())


def _polynomial(word: bytes) -> int:
    value = 0
    for byte in word:
        value = (value * _BASE + byte + 1) % 2**64
    return value


@dataclass(frozen=True)
class _Chunk:
    """The n-grams that end in a stretch of a stream, and the documents that end there."""

    grams: np.ndarray  # uint64 [n]
    starts: np.ndarray  # int64 [n]: the first token of each n-gram
    stops: np.ndarray  # int64 [n]: the first token of its last word
    documents: np.ndarray  # uint64 [d]: hashes of documents; 0 without a letter
    begins: np.ndarray  # int64 [d]: their first tokens
    lengths: np.ndarray  # int64 [d]: in tokens


def _starts(streams: Sequence[TokenStream]) -> list[int]:
    """Returns the position of each stream's first token in all of them."""
    return [sum(len(stream) for stream in streams[:at]) for at in range(len(streams))]


def _chunks(stream: TokenStream, letters: _Letters, eot: int, before: int) -> Iterator[_Chunk]:
    """Reads a stream once; `before` is the position of its first token."""
    words, places = np.empty(0, np.uint64), np.empty(0, np.int64)  # the last ones: hash, and first token
    rest = np.empty(0, np.uint16)  # tokens of a word that the next chunk may continue
    document = _Document(before)
    for at in range(0, len(stream), _CHUNK):
        ids = stream.read(at, min(_CHUNK, len(stream) - at))
        is_last = at + len(ids) == len(stream)
        whole, first = np.concatenate([rest, ids]), at + before - len(rest)
        begins = _word_begins(whole, letters)
        cut = len(whole) if is_last or not len(begins) else int(begins[-1])
        rest, begins = whole[cut:], begins[: len(begins) - (cut < len(whole))]
        hashes = _mixed(_joined(whole[:cut], np.append(begins, cut), letters)) if len(begins) else words[:0]
        words, places = np.concatenate([words, hashes]), np.concatenate([places, begins + first])
        grams = _grams(words)
        starts, stops = places[: len(grams)], places[LENGTH - 1 :][: len(grams)]
        words, places = words[len(grams) :], places[len(grams) :]
        yield _Chunk(
            grams, starts, stops, *document.extend(ids, np.flatnonzero(ids == eot), letters, at + before, is_last)
        )


def _word_begins(ids: np.ndarray, letters: _Letters) -> np.ndarray:
    """Returns the index of the first token of every word in tokens [n]; the first of them begins a word, if any."""
    worded = letters.count[ids] > 0
    after_other = np.concatenate([[True], ~worded[:-1]])
    return np.flatnonzero(worded & (letters.leads[ids] | after_other))


def _joined(ids: np.ndarray, edges: np.ndarray, letters: _Letters) -> np.ndarray:
    """Hashes the letters of each piece ids[edges[k]:edges[k + 1]], however they are divided into tokens; uint64 [k]."""
    part = ids[edges[0] :]
    total = np.concatenate([[0], np.cumsum(letters.count[part])])
    ends = np.repeat(total[edges[1:] - edges[0]], np.diff(edges))
    summed = np.cumsum(letters.hash[part] * _powers(ends - total[1:]), dtype=np.uint64)
    parts = np.concatenate([np.zeros(1, np.uint64), summed])
    return parts[edges[1:] - edges[0]] - parts[edges[:-1] - edges[0]]


def _grams(codes: np.ndarray) -> np.ndarray:
    """Hashes every run of LENGTH codes, uint64 [max(n - LENGTH + 1, 0)]; the length of runs doubles in each pass."""
    if len(codes) < LENGTH:
        return np.empty(0, np.uint64)
    length, values = 1, codes
    while length < LENGTH:
        values = values[:-length] * np.uint64(pow(_BASE, length, 2**64)) + values[length:]
        length *= 2
    return _mixed(values)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spreads differences over all bits (the finaliser of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


class _Document:
    """The document that the end of a chunk cuts: its first token, and the hash [1] of its letters so far."""

    def __init__(self, begin: int):
        self.begin, self.hash = begin, np.zeros(1, np.uint64)

    def extend(
        self, ids: np.ndarray, ends: np.ndarray, letters: _Letters, at: int, is_last: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adds tokens [n], whose documents end before `ends`; returns hash, first token and length of each that does.

        `at` is the position of ids[0].
        """
        edges = np.concatenate([[0], ends, [len(ids)]])  # of the pieces of documents in this chunk
        hashes = _joined(ids, edges, letters)
        hashes[:1] += self.hash * _powers(letters.count[ids[: edges[1]]].sum(keepdims=True))
        begins = np.concatenate([[self.begin], ends + at])
        done = len(begins) if is_last else len(begins) - 1
        self.begin, self.hash = int(begins[-1]), hashes[-1:]
        stops = np.concatenate([ends, [len(ids)]]) + at
        return hashes[:done], begins[:done], (stops - begins)[:done]


def _powers(exponents: np.ndarray) -> np.ndarray:
    """Returns _BASE to these powers modulo 2^64, for exponents below 2^32."""
    low, high = _power_tables()
    return low[exponents & 0xFFFF] * high[exponents >> 16]


@functools.cache
def _power_tables() -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for base in (_BASE, pow(_BASE, 2**16, 2**64)):
        table = np.full(2**16, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table, dtype=np.uint64))
    return tables[0], tables[1]


class _Known:
    """Hashes to be found, and the place at which each was first met."""

    def __init__(self, hashes: np.ndarray):
        self._sorted, self._of = np.unique(hashes, return_inverse=True)
        self._met = np.full(len(self._sorted), -1, np.int64)

    def look_up(self, hashes: np.ndarray, places: np.ndarray) -> None:
        """Notes the places of known hashes that were not met before."""
        if len(self._sorted):
            at = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
            new = (self._sorted[at] == hashes) & (self._met[at] < 0)
            self._met[at[new][::-1]] = places[new][::-1]  # of equal indices the last assignment stays

    @property
    def met(self) -> np.ndarray:
        """The place of each of the given hashes, -1 for none; int64 [n]."""
        return self._met[self._of]


class _Table:
    """The validation text: its n-grams, or a sample of them, and its documents, to be found in the training text."""

    def __init__(self, val: Sequence[TokenStream], letters: _Letters, eot: int):
        self._every = np.uint64(max(1, -(-sum(map(len, val)) // _SAMPLE)))
        chunks = [
            self._sampled(chunk)
            for stream, before in zip(val, _starts(val), strict=True)
            for chunk in _chunks(stream, letters, eot, before)
        ]
        names = _Chunk.__dataclass_fields__
        whole = _Chunk(**{name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names})
        self._total = int(whole.lengths.sum())
        del chunks
        self._starts, self._stops, self._grams = whole.starts, whole.stops, _Known(whole.grams)
        self._marks = np.zeros(2**_BITS, bool)  # most n-grams of the training text end here
        self._marks[whole.grams >> np.uint64(64 - _BITS)] = True
        worded = whole.documents != 0
        self._begins, self._lengths = whole.begins[worded], whole.lengths[worded]
        self._documents = _Known(whole.documents[worded])

    def _sampled(self, chunk: _Chunk) -> _Chunk:
        chosen = chunk.grams % self._every == 0
        return replace(chunk, grams=chunk.grams[chosen], starts=chunk.starts[chosen], stops=chunk.stops[chosen])

    def look_up(self, chunk: _Chunk) -> None:
        """Finds n-grams and documents of the validation text in a chunk of the training text."""
        maybe = self._marks[chunk.grams >> np.uint64(64 - _BITS)]
        self._grams.look_up(chunk.grams[maybe], chunk.starts[maybe])
        self._documents.look_up(chunk.documents, chunk.begins)

    def result(self) -> Overlap:
        found, repeated = self._grams.met >= 0, self._documents.met >= 0
        by_grams = found.sum() / max(len(found), 1)
        by_documents = self._lengths[repeated].sum() / max(self._total, 1)
        return Overlap(
            ngrams=len(found),
            found=int(found.sum()),
            documents=len(repeated),
            repeated=int(repeated.sum()),
            share=float(max(by_grams, by_documents)),
            places=tuple(self._places(found, repeated)),
        )

    def _places(self, found: np.ndarray, repeated: np.ndarray) -> list[Place]:
        """Returns the longest repeated documents and runs of found n-grams outside of them."""
        spans = zip(self._begins[repeated], self._lengths[repeated], self._documents.met[repeated], strict=True)
        documents = [Place(int(at), int(length), int(met)) for at, length, met in spans]
        starts, stops, met = self._starts[found], self._stops[found], self._grams.met[found]
        document = np.searchsorted(self._begins[repeated], starts, side="right") - 1
        ends = np.append(self._begins[repeated] + self._lengths[repeated], -1)  # index -1: before the first one
        apart = starts >= ends[document]
        starts, stops, met = starts[apart], stops[apart], met[apart]
        gap = 4 * LENGTH * int(self._every)  # between them are tokens without letters, and n-grams that were not chosen
        cuts = np.flatnonzero(np.diff(starts) > gap) + 1
        runs = zip(*(np.split(part, cuts) for part in (starts, stops, met)), strict=True) if len(starts) else ()
        passages = [Place(int(a[0]), int(b[-1] - a[0]) + 1, int(at[0])) for a, b, at in runs]
        return sorted([*documents, *passages], key=lambda place: (-place.tokens, place.val_token))[:_PLACES]
