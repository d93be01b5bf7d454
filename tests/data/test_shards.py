"""Token files: what is read, what is refused and with which words."""

from __future__ import annotations

import hashlib
import os
import resource
import struct

import numpy as np
import pytest

from ratrain.data.shards import (
    Shard,
    TokenStream,
    check_ids,
    open_shard,
    read_meta,
    write_meta,
    write_shard,
)
from ratrain.errors import DataError, MissingError


def llmc(tokens, *, magic=20240520, version=1, count=None, order="<") -> bytes:
    header = struct.pack(f"{order}256i", magic, version, len(tokens) if count is None else count, *[0] * 253)
    return header + np.asarray(tokens, "<u2").tobytes()


def test_a_llmc_file_is_read_as_its_tokens(tmp_path):
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(llmc([1, 2, 50256]))
    assert open_shard(path).tokens[:].tolist() == [1, 2, 50256]


def test_a_nanogpt_file_is_read_from_its_first_byte(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(1000, dtype="<u2").tofile(path)
    assert open_shard(path).tokens[:].tolist() == list(range(1000))


def test_a_nanogpt_file_of_one_token_is_read(tmp_path):
    path = tmp_path / "val.bin"
    path.write_bytes(b"\x07\x00")
    assert open_shard(path).tokens[:].tolist() == [7]


def test_what_is_written_is_llmc_and_described_by_its_hash(tmp_path):
    path = tmp_path / "x.bin"
    entry = write_shard(path, np.array([3, 1, 2], np.uint16))
    assert path.read_bytes() == llmc([3, 1, 2])
    assert entry == {"file": "x.bin", "tokens": 3, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_file_that_is_cut_under_its_reader_is_told(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(llmc(range(5000)))
    tokens = open_shard(path).tokens
    os.truncate(path, 1024 + 2 * 1000)
    assert tokens[900:1000].tolist() == list(range(900, 1000))
    with pytest.raises(DataError, match=r"a\.bin: was cut while in use: it had 11024 bytes"):
        tokens[990:1010]


def test_a_file_that_is_deleted_under_its_reader_stays_readable(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(llmc(range(10)))
    tokens = open_shard(path).tokens
    path.unlink()
    assert tokens[:].tolist() == list(range(10))


def test_more_shards_than_a_process_may_have_open_are_opened(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "a.bin"
    path.write_bytes(llmc([1, 2, 3]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        tokens = [open_shard(path).tokens for _ in range(150)]
        assert tokens[-1][1:].tolist() == [2, 3]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


BAD = {
    "an empty file": ("a.bin", b"", "is empty"),
    "an empty nanoGPT file": ("train.bin", b"", "is empty"),
    "a header cut off": ("a.bin", llmc([1])[:800], "too short: 800 bytes"),
    "less than a word": ("a.bin", b"ab", "no token file: 2 bytes"),
    "a foreign magic": ("a.bin", b"\x89PNG" + bytes(2000), r"magic 1196314761, expected llm.c's 20240520"),
    "a byte-swapped header": ("a.bin", llmc([1], order=">"), "byte-swapped"),
    "a byte-swapped header under nanoGPT's name": ("train.bin", llmc([1], order=">"), "byte-swapped"),
    "Llama-3 tokens": ("a.bin", llmc([1], magic=20240801, version=7), "Llama-3"),
    "Llama-3 tokens under nanoGPT's name": ("val.bin", llmc([1], magic=20240801, version=7), "Llama-3"),
    "HellaSwag": ("a.bin", llmc([1], magic=20240522), "HellaSwag"),
    "a later version": ("a.bin", llmc([1], version=2), "version 2; ratrain reads version 1"),
    "a truncated file": (
        "a.bin",
        llmc([1, 2, 3])[:-2],
        "header says 3 tokens = 1030 bytes, file has 1028 bytes",
    ),
    "a file that is too long": ("a.bin", llmc([1, 2]) + b"x", "header says 2 tokens = 1028 bytes"),
    "a negative count": ("a.bin", llmc([], count=-1), "header says -1 tokens"),
    "no tokens": ("a.bin", llmc([]), "holds no tokens"),
    "an odd nanoGPT file": ("train.bin", bytes(1001), "1001 bytes is an odd size"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_words(tmp_path, case):
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_shard(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_folder_and_a_fifo_are_refused(tmp_path):
    (tmp_path / "train.bin").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        open_shard(tmp_path / "train.bin")
    os.mkfifo(tmp_path / "val.bin")
    with pytest.raises(DataError, match="not a regular file"):
        open_shard(tmp_path / "val.bin")


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingError, match="ratrain prepare INPUT"):
        open_shard(tmp_path / "train.bin")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.bin"
    path.write_bytes(bytes(10))

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root reads anything, so permissions alone prove nothing
    with pytest.raises(DataError, match="Permission denied; make it readable"):
        open_shard(path)


def test_an_id_beyond_the_vocabulary_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("ratrain.data.shards._CHUNK", 4)
    shard = Shard(tmp_path / "a.bin", np.array([0, 1, 2, 3, 4, 99, 100], np.uint16))
    check_ids(shard, vocab_size=101)
    with pytest.raises(DataError, match=r"a\.bin: token 6 is 100, but the ids of a vocabulary of 100 end at 99"):
        check_ids(shard, vocab_size=100)


def test_a_stream_of_shards_reads_as_one_array(tmp_path):
    whole = np.arange(23, dtype=np.uint16)
    parts = np.split(whole, [5, 6, 14])
    stream = TokenStream([Shard(tmp_path / f"{i}.bin", part) for i, part in enumerate(parts)], name="x")
    assert len(stream) == 23
    for offset in range(24):
        for count in range(24 - offset):
            read = stream.read(offset, count)
            assert read.dtype == np.uint16
            assert read.tolist() == whole[offset : offset + count].tolist()


@pytest.mark.parametrize(("offset", "count"), [(-1, 2), (20, 4), (24, 0), (0, 24), (3, -1)])
def test_reading_beyond_a_stream_is_an_error(tmp_path, offset, count):
    stream = TokenStream([Shard(tmp_path, np.arange(23, dtype=np.uint16))], name="x")
    with pytest.raises(IndexError, match="of 23"):
        stream.read(offset, count)


def test_meta_round_trips_and_its_absence_is_none(tmp_path):
    assert read_meta(tmp_path) is None
    entry = {"file": "train_0.bin", "tokens": 3, "sha256": "0"}
    write_meta(tmp_path, tokenizer="gpt2", vocab_size=50257, splits={"train": [entry], "val": []})
    meta = read_meta(tmp_path)
    assert meta["splits"] == {"train": [entry], "val": []}
    assert (meta["eot"], meta["eot_placement"], meta["tokens"]) == (
        50256,
        "before each document",
        {"train": 3, "val": 0},
    )


GOOD = '{"format": "ratrain-shards", "version": 1, "tokenizer": "gpt2", "splits": %s}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[" * 100_000,
        "[]",
        '{"format": "other"}',
        GOOD % "{}",
        GOOD % '{"train": [{"file": "../x.bin", "tokens": 1, "sha256": ""}], "val": []}',
        GOOD % '{"train": [{"file": "", "tokens": 1, "sha256": ""}], "val": []}',
        GOOD % '{"train": [{"file": "x.bin", "tokens": "1", "sha256": ""}], "val": []}',
        GOOD % '{"train": 3, "val": []}',
    ],
)
def test_a_damaged_meta_is_refused(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(DataError, match=r"meta\.json: "):
        read_meta(tmp_path)
