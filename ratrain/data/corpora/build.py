"""Builds the files of this folder from the published corpus and the GPT-2 merges; README.md has the command.

Needs the `tokenizers` package. The same inputs yield the same bytes with zlib. Another deflate library may pack them
differently; only unpacked bytes are ever compared.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import lzma
from collections.abc import Iterable
from pathlib import Path

from ratrain.data.corpora import split_works
from ratrain.data.tokenizer import byte_letters

PUBLISHED = {
    "shakespeare": "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f",
    "vocab": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
MERGEABLE = 2047  # and <|endoftext|>: 2048


def published(path: Path, sha256: str) -> bytes:
    """Returns the bytes of `path`, unpacked if it ends in .xz or .gz. Exits if they are not the published bytes."""
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
    content = unpack(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{path}: SHA-256 is not {sha256}")
    return content


def without_stray_lines(text: str) -> str:
    """Removes the lines that hold nothing but `@` (two, in Love's Labour's Lost)."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.strip() or line.strip().strip("@"))


def train_ranks(works: Iterable[str]) -> list[bytes]:
    """Trains a byte-level BPE; returns its tokens in rank order: 256 bytes in GPT-2's order, then one per merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's pattern
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=MERGEABLE, min_frequency=2, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(works, trainer)
    letters = byte_letters()
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])[len(alphabet) :]
    ranks = [bytes([letters[c]]) for c in letters] + [bytes(letters[c] for c in token) for token, _ in learned]
    assert len(ranks) == len(set(ranks)) == MERGEABLE
    return ranks


def packed(content: bytes) -> bytes:
    """Compresses to gzip without time or name. Not gzip.compress: its header differs between Python versions."""
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, out, mtime=0) as file:
        file.write(content)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shakespeare", type=Path, required=True, help="shakespeare_plays.txt, .gz or .xz")
    parser.add_argument("--vocab", type=Path, required=True, help="GPT-2's vocab.bpe, .gz or .xz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    text = without_stray_lines(published(args.shakespeare, PUBLISHED["shakespeare"]).decode("ascii"))
    ranks = train_ranks(split_works(text)[0])
    lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))
    for name, content in (
        ("shakespeare.txt", text.encode()),
        ("gpt2_vocab.bpe", published(args.vocab, PUBLISHED["vocab"])),
        ("shakespeare2k.tiktoken", lines.encode()),
    ):
        if name.endswith(".tiktoken"):
            (args.out / name).write_bytes(content)
        else:
            (args.out / f"{name}.gz").write_bytes(packed(content))
        print(f"{hashlib.sha256(content).hexdigest()}  {name}  {len(content)} bytes")


if __name__ == "__main__":
    main()
