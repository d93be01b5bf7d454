"""The embedded encodings against a plain byte-pair encoder and the properties GPT-2's must have."""

from __future__ import annotations

import gzip
import itertools
import random
from pathlib import Path

import pytest
import regex

from ratrain.data import corpora, tokenizer
from ratrain.data.corpora import build
from ratrain.data.tokenizer import VOCAB, load_tokenizer
from ratrain.errors import DataError, MissingError

TEXTS = [
    "Hello world",
    "  two  spaces, then\n\n\ttabs \n",
    "we'll see 'em; I'd've said it's 1234 pounds",
    "naïve café 東京 👩‍👩‍👧 \x00\x7f",
    "a <|endoftext|> that is text",
    "Tomorrow, and tomorrow, and tomorrow,\nCreeps in this petty pace from day to day",
]
GPT2_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def plain_bpe(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids by the textbook: in each word, join the pair of lowest rank until none is known."""
    ids = []
    for word in GPT2_PATTERN.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
            if min(joined) == len(ranks):
                break
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.mark.parametrize("name", VOCAB)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_a_textbook_encoder(name, text):
    encoding = load_tokenizer(name)
    ranks = {encoding.decode_single_token_bytes(i): i for i in range(encoding.n_vocab - 1)}
    assert encoding.encode_ordinary(text) == plain_bpe(text, ranks)


@pytest.mark.parametrize("name", VOCAB)
def test_any_unicode_text_survives_a_round_trip(name):
    draw, encoding = random.Random(0), load_tokenizer(name)
    for _ in range(300):
        points = [draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000), draw.randrange(128)])
                  for _ in range(30)]  # fmt: skip
        text = "".join(map(chr, points))
        assert encoding.decode(encoding.encode_ordinary(text)) == text


@pytest.mark.parametrize("name", VOCAB)
def test_end_of_text_is_the_last_id(name):
    encoding = load_tokenizer(name)
    assert encoding.n_vocab == VOCAB[name]
    assert encoding.eot_token == VOCAB[name] - 1


def test_gpt2_ids_are_the_published_ones():
    encoding = load_tokenizer("gpt2")
    assert encoding.encode("Hello world") == [15496, 995]
    assert encoding.encode(" gazed")[-1] == 50255  # the last merge


def test_text_that_looks_like_a_separator_is_never_one():
    encoding = load_tokenizer("gpt2")
    assert encoding.eot_token not in encoding.encode_ordinary("<|endoftext|>")


def test_shakespeare2k_equals_the_library_that_trained_it():
    tokenizers = pytest.importorskip("tokenizers")
    encoding = load_tokenizer("shakespeare2k")
    letters = {byte: letter for letter, byte in tokenizer.byte_letters().items()}
    written = ["".join(letters[b] for b in encoding.decode_single_token_bytes(i)) for i in range(2047)]
    merges: list[tuple[str, str]] = []
    for token in written[256:]:
        merges.append(parts_of(token, merges))
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(written)}, merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    _, val = corpora.split_works(corpora.read("shakespeare.txt").decode())
    assert bpe.encode(val[0]).ids == encoding.encode_ordinary(val[0])


def test_the_committed_ranks_are_what_the_build_script_trains():
    pytest.importorskip("tokenizers")
    train, _ = corpora.split_works(corpora.read("shakespeare.txt").decode())
    encoding = load_tokenizer("shakespeare2k")
    assert build.train_ranks(train) == [encoding.decode_single_token_bytes(i) for i in range(2047)]


def parts_of(token: str, merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """The two parts that earlier merges leave of `token`."""
    order = {pair: i for i, pair in enumerate(merges)}
    parts = list(token)
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: order.get((parts[i], parts[i + 1]), len(order)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(MissingError, match="'llama'; the choices are 'gpt2', 'shakespeare2k'"):
        load_tokenizer("llama")


def test_a_damaged_file_of_the_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(corpora, "files", lambda _: tmp_path)
    (tmp_path / "gpt2_vocab.bpe.gz").write_bytes(gzip.compress(b"#version: 0.2\n"))
    with pytest.raises(DataError, match="SHA-256 differs"):
        corpora.read("gpt2_vocab.bpe")
    (tmp_path / "gpt2_vocab.bpe.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        corpora.read("gpt2_vocab.bpe")


def test_packed_files_carry_no_time_and_no_name():
    for file in sorted(Path(corpora.__file__).parent.glob("*.gz")):
        assert file.read_bytes()[3:8] == bytes(5), file  # flags, then the time


def test_validation_is_macbeth_and_twelfth_night():
    train, val = corpora.split_works(corpora.read("shakespeare.txt").decode())
    assert [work.split("\n")[0] for work in val] == ["MACBETH", "TWELFTH NIGHT; OR, WHAT YOU WILL"]
    assert len(train) == 40
    assert not any("Banquo" in work or "Malvolio" in work for work in train)
