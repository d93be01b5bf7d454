"""The tokens of a run: the embedded corpus or a folder of shards, validated before step 0."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tiktoken
import torch

from ratrain.checksum import sha256_of
from ratrain.config.schema import DataSection
from ratrain.data import corpora
from ratrain.data.cache import alone, cache_folder, remembered
from ratrain.data.hub import SETS
from ratrain.data.ngram import TRAIN_CAP, ngram_nats
from ratrain.data.overlap import VERSION as OVERLAP_VERSION
from ratrain.data.overlap import Overlap, find_overlap
from ratrain.data.sampling import (
    Clusters,
    Sampler,
    Windows,
    require_window,
    sample_rows,
    validation_clusters,
    validation_windows,
)
from ratrain.data.shard_writer import STATE
from ratrain.data.shards import (
    Shard,
    TokenStream,
    check_ids,
    encode_shard,
    open_shard,
    read_meta,
    shard_entry,
    write_meta,
    write_shard,
)
from ratrain.data.tokenizer import bits_per_byte, load_tokenizer
from ratrain.errors import CannotCreateError, DataError, DiskError, Fault, ManifestError, MissingError

__all__ = [
    "Corpus",
    "Sampler",
    "ngram_losses",
    "open_corpus",
    "require_window",
    "sample_rows",
    "validation_clusters",
    "validation_windows",
]

EMBEDDED = "shakespeare"
_SPLITS: tuple[str, ...] = ("train", "val")
_ENDS = 2**20  # bytes at each end of a raw file covered by its fingerprint


@dataclass(frozen=True)
class Corpus:
    """Training and validation tokens, their encoding, and a SHA-256 that identifies the tokens."""

    train: TokenStream
    val: TokenStream
    tokenizer: tiktoken.Encoding
    fingerprint: str
    is_text: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.train.name.removesuffix(" (train)")

    @property
    def train_tokens(self) -> int:
        return len(self.train)

    @property
    def val_tokens(self) -> int:
        return len(self.val)

    def sampler(self, *, seed: int, batch: int, block_size: int, rank: int = 0, world: int = 1) -> Sampler:
        """Returns the sampler of training batches; see `Sampler`."""
        options = {"seed": seed, "batch": batch, "block_size": block_size, "vocab_size": self.tokenizer.n_vocab}
        return Sampler(self.train, **options, rank=rank, world=world)

    def validation(self, *, block_size: int, count: int) -> Windows:
        """Returns at most `count` validation windows; see `validation_windows`."""
        return Windows.of_text(validation_windows(self.val, block_size=block_size, count=count))

    def clusters(self, windows: Windows) -> Clusters:
        """Returns the clusters of the targets of `windows`, which `validation` returned."""
        count, block_size = windows.targets.shape
        return validation_clusters(self.val, block_size=block_size, count=count, eot=self.tokenizer.eot_token)

    def baselines(self, windows: Windows) -> dict[str, float]:
        """Returns nats per token of n-gram models on `windows`; see `ngram_losses`."""
        return ngram_losses(self, windows.tokens, self.tokenizer.n_vocab)

    def overlap(self) -> Overlap:
        """Returns the validation text that is also training text; computed once, then cached."""
        return overlap_of([self])

    def bits_per_byte(self, loss: float, targets: np.ndarray) -> float:
        """Converts a mean loss in nats over `targets` to bits per byte of their text; see `bits_per_byte`."""
        return bits_per_byte(loss, targets, self.tokenizer.name)


def open_corpus(section: DataSection, *, vocab_size: int, block_size: int = 0) -> Corpus:
    """Opens the corpus that `section` names, with every id below `vocab_size`.

    Raises ManifestError if the tokenizer has another vocabulary size, MissingError if a folder or shard is missing,
    and DataError for an invalid token file or fewer than block_size + 1 tokens.
    """
    tokenizer = load_tokenizer(section.tokenizer)
    if tokenizer.n_vocab != vocab_size:
        n = tokenizer.n_vocab
        message = f"{tokenizer.name!r} has {n} tokens but model.vocab_size is {vocab_size}; set model.vocab_size = {n}"
        raise ManifestError([Fault("", "data.tokenizer", message)])
    if section.source == EMBEDDED:
        corpus = _open_embedded(tokenizer)
    else:
        corpus = _open_folder(Path(section.source).expanduser(), tokenizer)
    for stream in (corpus.train, corpus.val):
        require_window(stream, block_size)
    return corpus


def _open_embedded(tokenizer: tiktoken.Encoding) -> Corpus:
    """Opens the embedded corpus from the cache if it is intact, else tokenises it."""
    source = _LAYOUT + corpora.SHA256["shakespeare.txt"] + corpora.SHA256[_RANKS[tokenizer.name]]
    folder = cache_folder() / f"shakespeare-{tokenizer.name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    try:
        meta = read_meta(folder)
        if meta and all(sha256_of([folder / e["file"]]) == e["sha256"] for s in _SPLITS for e in meta["splits"][s]):
            return _from_meta(folder, meta, tokenizer)
    except (DataError, MissingError):
        pass  # rebuild a damaged cache
    return _make_embedded(folder, tokenizer)


_LAYOUT = "1"  # increment when the same text and ranks produce other tokens
_RANKS = {"gpt2": "gpt2_vocab.bpe", "shakespeare2k": "shakespeare2k.tiktoken"}  # file behind each encoding


def _make_embedded(folder: Path, tokenizer: tiktoken.Encoding) -> Corpus:
    works = dict(zip(_SPLITS, corpora.split_works(corpora.read("shakespeare.txt").decode()), strict=True))
    tokens = {split: _encode(works[split], tokenizer) for split in _SPLITS}
    shards = {split: Shard(folder / f"{split}_000000.bin", ids) for split, ids in tokens.items()}
    splits = {split: [shard_entry(shards[split].path.name, encode_shard(ids))] for split, ids in tokens.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, ids in tokens.items():
            write_shard(shards[split].path, ids)
        write_meta(folder, tokenizer=tokenizer.name, vocab_size=tokenizer.n_vocab, splits=splits)
    except (OSError, CannotCreateError, DiskError):
        pass  # no cache: the tokens stay in memory
    train, val = (TokenStream([shards[split]], name=f"{EMBEDDED} ({split})") for split in _SPLITS)
    return Corpus(train, val, tokenizer, _meta_fingerprint(tokenizer.name, splits))


def _encode(works: Sequence[str], tokenizer: tiktoken.Encoding) -> np.ndarray:
    """Encodes works, with `<|endoftext|>` before each; uint16 [n]."""
    ids = tokenizer.encode_ordinary_batch(list(works), num_threads=2)
    return np.concatenate([np.array([tokenizer.eot_token, *work], np.uint16) for work in ids])


def _open_folder(folder: Path, tokenizer: tiktoken.Encoding) -> Corpus:
    if not folder.exists():
        inputs = folder.name if folder.name in SETS else "INPUT..."
        raise MissingError(f"{folder}: no such folder; `ratrain prepare {inputs} --out {folder}` makes it from text")
    if not folder.is_dir():
        raise DataError(
            f"{folder}: is not a folder; data.source names one that holds train and val shards"
            f" (`ratrain prepare {folder} --out DIR` makes it from text)"
        )
    meta = read_meta(folder)
    if meta is None and (folder / STATE).exists():
        raise MissingError(f"{folder}: is not finished; run the same `ratrain prepare` command again, it continues")
    if meta is None:
        return _from_raw(folder, tokenizer)
    if meta["tokenizer"] != tokenizer.name:
        raise DataError(
            f"{folder}: was made with tokenizer {meta['tokenizer']!r} but data.tokenizer = {tokenizer.name!r};"
            f" set data.tokenizer = {meta['tokenizer']!r} and model.vocab_size = {meta.get('vocab_size')}"
        )
    return _from_meta(folder, meta, tokenizer)


def _from_meta(folder: Path, meta: dict[str, Any], tokenizer: tiktoken.Encoding) -> Corpus:
    """Opens shards described by meta.json; without validation entries there, uses any *val*.bin in the folder."""
    streams = []
    for split in _SPLITS:
        entries = meta["splits"][split]
        shards = [open_shard(folder / entry["file"]) for entry in entries] or _find(folder, split)
        for shard, entry in zip(shards, entries, strict=False):
            if len(shard.tokens) != entry["tokens"]:
                raise DataError(f"{shard.path}: has {len(shard.tokens)} tokens, meta.json says {entry['tokens']}")
        sha256 = {entry["file"]: entry["sha256"] for entry in entries}
        streams.append(_stream(folder, split, shards, tokenizer.n_vocab, sha256))
    train, val = streams
    if not meta["splits"]["val"]:
        return Corpus(train, val, tokenizer, _raw_fingerprint([train, val], tokenizer.name))
    return Corpus(train, val, tokenizer, _meta_fingerprint(tokenizer.name, meta["splits"]))


def _from_raw(folder: Path, tokenizer: tiktoken.Encoding) -> Corpus:
    """Opens shards of nanoGPT or llm.c; assumes that their ids belong to `tokenizer`."""
    if (folder / "meta.pkl").exists():
        raise DataError(
            f"{folder}: meta.pkl marks a nanoGPT set with its own vocabulary, not that of {tokenizer.name!r};"
            f" prepare its text: `ratrain prepare {folder / 'input.txt'} --out DIR`"
        )
    train, val = (_stream(folder, split, _find(folder, split), tokenizer.n_vocab, {}) for split in _SPLITS)
    return Corpus(train, val, tokenizer, _raw_fingerprint([train, val], tokenizer.name))


def _find(folder: Path, split: str) -> list[Shard]:
    """Opens the *.bin shards of `split`, in the order of their names."""
    paths = [path for path in sorted(folder.glob("*.bin")) if _split_of(path) == split]
    if not paths:
        raise MissingError(
            f"{folder}: holds no *{split}*.bin; `ratrain prepare INPUT... --out {folder}` makes train and val shards"
        )
    if len(paths) > 1 and any(path.name == f"{split}.bin" for path in paths):
        raise DataError(f"{folder}: holds {split}.bin beside {len(paths) - 1} more {split} shards; leave one set")
    return [open_shard(path) for path in paths]


def _split_of(path: Path) -> str | None:
    """Returns 'val' or 'train' by the name; a whole word decides if both occur (`interval_train_1.bin` is train)."""
    name = path.stem.lower()
    if "val" in re.findall("[a-z]+", name) or ("val" in name and "train" not in name):
        return "val"
    return "train" if "train" in name else None


def _stream(folder: Path, split: str, shards: list[Shard], vocab_size: int, sha256: dict[str, str]) -> TokenStream:
    for shard in shards:
        _check_once(shard, vocab_size, sha256.get(shard.path.name))
    return TokenStream(shards, name=f"{folder} ({split})")


def _check_once(shard: Shard, vocab_size: int, sha256: str | None) -> None:
    """Checks the ids and the SHA-256, if known, of a shard by one full read. The cache records files that passed."""

    def check() -> dict:
        if sha256 is not None and sha256_of([shard.path]) != sha256:
            raise DataError(f"{shard.path}: SHA-256 differs from meta.json: the file is damaged; prepare it again")
        check_ids(shard, vocab_size=vocab_size)
        return {"passed": True}

    remembered("checked", json.dumps([*_state_of(shard.path), vocab_size, sha256]), check)


def _state_of(file: Path) -> list[str | int]:
    """Returns what changes with the content of a file: its path, size, time of change and inode."""
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]


def _meta_fingerprint(tokenizer: str, splits: dict[str, list[dict]]) -> str:
    hashes = [[split, [entry["sha256"] for entry in splits[split]]] for split in _SPLITS]
    return hashlib.sha256(json.dumps([tokenizer, hashes]).encode()).hexdigest()


def _raw_fingerprint(streams: Sequence[TokenStream], tokenizer: str) -> str:
    """Hashes sizes and both ends of every file: a full hash of raw data would take as long as reading it."""
    digest = hashlib.sha256(tokenizer.encode())
    for stream in streams:
        for shard in stream.shards:
            digest.update(json.dumps([shard.path.name, len(shard.tokens)]).encode())
            ends = max(0, len(shard.tokens) - _ENDS // 2)
            digest.update(shard.tokens[: _ENDS // 2].tobytes() + shard.tokens[ends:].tobytes())
    return digest.hexdigest()


def overlap_of(corpora: Sequence[Corpus]) -> Overlap:
    """Returns the overlap of all validation text with all training text of `corpora`, which share a tokenizer.

    The result is cached; processes that ask at the same time wait for one of them.
    """
    tokenizer = corpora[0].tokenizer

    def compute() -> dict[str, Any]:
        trained, held = [corpus.train for corpus in corpora], [corpus.val for corpus in corpora]
        return find_overlap(trained, held, tokenizer.name, eot=tokenizer.eot_token).record()

    # the fingerprint of token files without meta.json does not cover their middle
    shards = [shard.path for corpus in corpora for stream in (corpus.train, corpus.val) for shard in stream.shards]
    states = [_state_of(path) for path in shards if path.exists()]
    key = json.dumps([OVERLAP_VERSION, [corpus.fingerprint for corpus in corpora], states])
    with alone("overlap"):
        return Overlap.of_record(remembered("overlap", key, compute, sound=lambda found: "places" in found))


def ngram_losses(corpus: Corpus, windows: torch.Tensor, vocab_size: int) -> dict[str, float]:
    """Returns nats per token of "uniform", "unigram" and "bigram" on `windows`, int64 [n, T + 1]; results are cached.

    Counts are of the first 20 million tokens of the train split.
    """
    asked = windows.numpy()
    key = json.dumps([corpus.fingerprint, hashlib.sha256(asked.tobytes()).hexdigest(), asked.shape, vocab_size])

    def compute() -> dict[str, float]:
        train = corpus.train.read(0, min(len(corpus.train), TRAIN_CAP))
        return ngram_nats(train, asked, vocab_size)

    return remembered("ngram", key, compute)
