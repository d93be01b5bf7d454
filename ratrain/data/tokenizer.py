"""The two vocabularies shipped with the package, as tiktoken encodings, and the symbols of recall tasks."""

from __future__ import annotations

import base64
import functools

import numpy as np
import tiktoken

from ratrain.config.schema import DataSection
from ratrain.data import corpora
from ratrain.data.recall.symbols import Symbols
from ratrain.errors import MissingError

VOCAB = {"gpt2": 50257, "shakespeare2k": 2048}  # size, including <|endoftext|>, which has the last id
END_OF_TEXT = "<|endoftext|>"

# GPT-2's pre-tokenisation; possessive quantifiers avoid slow backtracking on any text
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def tokenizer_of(section: DataSection) -> tiktoken.Encoding | Symbols:
    """Returns the tokenizer of a manifest's data. Raises MissingError as `load_tokenizer`."""
    return Symbols() if section.is_recall else load_tokenizer(section.tokenizer)


@functools.cache
def load_tokenizer(name: str) -> tiktoken.Encoding:
    """Returns the encoding `name`. Raises MissingError for a name that is not in VOCAB."""
    ranks = ranks_of(name)
    return tiktoken.Encoding(
        name,
        pat_str=_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=VOCAB[name],
    )


def ranks_of(name: str) -> dict[bytes, int]:
    """Returns the tokens of the vocabulary `name` by their ranks, in order. Raises MissingError."""
    if name not in VOCAB:
        raise MissingError(f"no tokenizer is called {name!r}; the choices are {', '.join(map(repr, VOCAB))}")
    return gpt2_ranks(corpora.read("gpt2_vocab.bpe")) if name == "gpt2" else _ranks(corpora.read(f"{name}.tiktoken"))


@functools.cache
def byte_lengths(name: str) -> np.ndarray:
    """Returns the bytes of text of every token of the encoding `name`, int64 [vocabulary]; of end-of-text 0."""
    return np.array([*map(len, ranks_of(name)), 0], dtype=np.int64)


def bits_per_byte(loss: float, targets: np.ndarray, name: str) -> float:
    """Converts a mean loss in nats over `targets`, tokens of the encoding `name`, to bits per byte of their text.

    It does not depend on the tokenizer: losses per token of two tokenizers cannot be compared, these can (Gao et al.,
    arXiv:2101.00027, section 3.1). The prediction of end-of-text counts; it has no bytes.
    """
    return loss * targets.size / (np.log(2) * byte_lengths(name)[targets].sum())


def byte_letters() -> dict[str, int]:
    """Maps each letter of vocab.bpe to its byte, in rank order; printable bytes come first and map to themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def gpt2_ranks(vocab_bpe: bytes) -> dict[bytes, int]:
    """Derives token bytes -> rank from the merges alone: 256 bytes, then one token per merge line."""
    letters = byte_letters()
    tokens = [bytes([byte]) for byte in letters.values()]
    for line in vocab_bpe.decode().splitlines()[1:]:  # the first line is the version
        tokens.append(bytes(letters[c] for c in line.replace(" ", "")))
    return {token: rank for rank, token in enumerate(tokens)}


def _ranks(lines: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines.splitlines())}
