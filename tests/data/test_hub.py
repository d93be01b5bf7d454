"""Parquet and sets known by name: read through the `datasets` library itself, from files that lie here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ratrain.config.schema import DataSection
from ratrain.data import prepare, shard_writer
from ratrain.data.corpus import open_corpus
from ratrain.data.documents import read_documents
from ratrain.data.hub import HubFile, hub_files, read_parquet
from ratrain.errors import DataError, Exit, UnavailableError

OPTIONS = {"tokenizer": "shakespeare2k", "val_fraction": 0.2, "shard_tokens": 100, "jobs": 1}
TEXTS = [f"{i}: " + "the king is come " * (i % 7 + 1) for i in range(60)]


def table(path, texts, column="text"):
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path, row_group_size=7)
    return path


@pytest.fixture
def copy(tmp_path):
    """Two Parquet files that hold TEXTS."""
    return [table(tmp_path / "in" / "a.parquet", TEXTS[:35]), table(tmp_path / "in" / "b.parquet", TEXTS[35:])]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts_of(folder):
    """Every document of a prepared folder, of either split."""
    corpus = open_corpus(DataSection(source=str(folder), tokenizer="shakespeare2k"), vocab_size=2048)
    ids = [token for split in (corpus.train, corpus.val) for token in split.read(0, len(split)).tolist()]
    return corpus.tokenizer.decode(ids).split("<|endoftext|>")[1:]


# Parquet


def test_a_table_and_lines_of_the_same_texts_become_the_same_shards(tmp_path, copy):
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare.prepare(copy, tmp_path / "table", **OPTIONS)
    prepare.prepare([lines], tmp_path / "lines", **OPTIONS)
    shards = {name: data for name, data in bytes_of(tmp_path / "table").items() if name.endswith(".bin")}
    assert shards == {name: data for name, data in bytes_of(tmp_path / "lines").items() if name.endswith(".bin")}
    assert sorted(texts_of(tmp_path / "table")) == sorted(TEXTS)


def test_rows_without_text_are_passed_over_and_counted(tmp_path):
    file = table(tmp_path / "a.parquet", ["one", " ", None, "four"])
    assert list(read_parquet(file, "text")) == [(1, "one"), (3, None), (4, "four")]
    assert list(read_parquet(file, "text", skip=1)) == [(3, None), (4, "four")]


def test_null_means_the_same_in_tables_and_lines(tmp_path):
    texts = ["one", None, "two", "three", None, None]
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for source in (table(tmp_path / "a.parquet", texts), lines):
        done = prepare.prepare([source], tmp_path / source.suffix[1:], **OPTIONS)
        assert (sum(done.documents.values()), done.skipped) == (3, 3)


def test_a_table_without_rows_holds_no_text_and_stops_no_other(tmp_path, copy):
    empty = tmp_path / "empty.parquet"
    table(empty, [])
    with pytest.raises(DataError, match="no input holds any text"):
        prepare.prepare([empty], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
    done = prepare.prepare([empty, *copy], tmp_path / "out", **OPTIONS)
    assert sum(done.documents.values()) == len(TEXTS)


def test_reading_goes_on_after_any_row(copy):
    whole = list(read_documents(copy, field="text"))
    assert [document.text for document in whole] == TEXTS
    for at in (0, 6, 7, 34, 35, 58):
        rest = read_documents(copy, field="text", file=whole[at].file, number=whole[at].number)
        assert list(rest) == whole[at + 1 :]


def test_another_column_is_named(tmp_path):
    file = table(tmp_path / "a.parquet", ["one", "two"], column="content")
    assert list(read_parquet(file, "content")) == [(1, "one"), (2, "two")]
    with pytest.raises(DataError, match=r"row 1: has no text in field 'text' \(its fields: 'id', 'content'\)"):
        list(read_parquet(file, "text"))
    with pytest.raises(DataError, match="row 1: has no text in field 'id'"):
        list(read_parquet(file, "id"))


@pytest.mark.parametrize("damage", [b"PAR1", b""])
def test_a_damaged_table_is_refused(tmp_path, copy, damage):
    copy[0].write_bytes(copy[0].read_bytes()[:200] + damage)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        prepare.prepare(copy, tmp_path / "out", **OPTIONS)


def test_without_the_library_one_message_says_what_to_install(copy, ratrain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, _, err = ratrain("prepare", copy[0], "--out", tmp_path / "out", "--jobs", 1)
    assert code == Exit.UNAVAILABLE
    assert "need the package datasets; pip install 'ratrain[datasets]'" in err


def test_a_number_of_tokens_ends_a_preparation_at_a_document(tmp_path, copy):
    lengths = {text: 1 + len(tokens) for text, (tokens, _) in zip(TEXTS, encoded(TEXTS), strict=True)}
    summary = prepare.prepare(copy, tmp_path / "out", **OPTIONS, tokens=300)
    kept = texts_of(tmp_path / "out")
    assert sorted(kept) == sorted(TEXTS[: len(kept)])
    total = sum(summary.tokens.values())
    assert total == sum(lengths[text] for text in kept)
    assert total >= 300 > total - lengths[TEXTS[len(kept) - 1]]


def encoded(texts):
    return [(ids[1:], chance) for ids, chance in prepare._encode(texts, "shakespeare2k")]


# sets known by name


class Hub:
    """Stands in for the hub's list of files; `sha` is the newest commit."""

    def __init__(self):
        self.sha, self.asked = "1" * 40, 0

    def dataset_info(self, repository, *, files_metadata):
        self.asked += 1
        names = ["data/train-0.parquet", "data/train-1.parquet", "data/validation-0.parquet", "README.md"]
        return SimpleNamespace(sha=self.sha, siblings=[SimpleNamespace(rfilename=name, size=9) for name in names[::-1]])


@pytest.fixture
def tinystories(copy, monkeypatch):
    """`tinystories` as if the hub were here; what the hub's URLs stand for is read from `copy`."""
    import datasets

    the_hub, load = Hub(), datasets.load_dataset

    def load_dataset(kind, *, data_files, **options):
        (url,) = data_files
        assert url.startswith("hf://datasets/roneneldan/TinyStories@" + "1" * 40)
        return load(kind, data_files=[str(copy[int(url.partition("train-")[2][0])])], **options)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: the_hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return the_hub


def test_a_named_set_is_its_training_files_at_one_commit(tinystories):
    prefix = f"hf://datasets/roneneldan/TinyStories@{'1' * 40}/data/"
    assert hub_files("tinystories") == [HubFile(prefix + "train-0.parquet", 9), HubFile(prefix + "train-1.parquet", 9)]


def test_a_named_set_is_prepared_where_its_name_says(tinystories, ratrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ratrain("prepare", "tinystories", "--tokenizer", "shakespeare2k", "--jobs", 1)
    assert code == Exit.DONE, err
    assert err.splitlines()[-1].startswith("use it: --set data.source=data/tinystories --set data.tokenizer=")
    assert sorted(texts_of(tmp_path / "data" / "tinystories")) == sorted(TEXTS)


@pytest.mark.parametrize("finished", range(1, 8))
def test_a_stopped_preparation_goes_on_with_the_commit_it_began_with(tinystories, tmp_path, monkeypatch, finished):
    name, real, count = [Path("tinystories")], shard_writer.write_shard, 0

    def stopping(path, tokens):
        nonlocal count
        count += 1
        if count > finished:
            raise KeyboardInterrupt
        return real(path, tokens)

    prepare.prepare(name, tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_writer, "write_shard", stopping)
        prepare.prepare(name, tmp_path / "out", **OPTIONS)
    tinystories.sha, tinystories.asked = "2" * 40, 0  # the hub has moved on
    assert prepare.prepare(name, tmp_path / "out", **OPTIONS).kept > 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert prepare.prepare(name, tmp_path / "out", **OPTIONS).kept == 60  # done: left as it is
    assert tinystories.asked == 0


def test_a_hub_out_of_reach_is_one_message(ratrain, tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise ConnectionError("Name or service not known\nand so on")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    code, _, err = ratrain("prepare", "finewebedu", "--out", tmp_path / "out")
    assert code == Exit.UNAVAILABLE
    assert err.startswith("ratrain: finewebedu: HuggingFaceFW/fineweb-edu cannot be looked up: ConnectionError: Name")
    assert "ratrain prepare FILES... --out DIR takes .parquet and .jsonl" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_set_without_such_files_is_one_message(tinystories):
    with pytest.raises(UnavailableError, match=r"finewebedu: .* has no file sample/10BT/.* at commit 111"):
        hub_files("finewebedu")


def test_a_hub_that_is_lost_on_the_way_says_what_continues(tinystories, tmp_path, copy):
    copy[1].unlink()
    with pytest.raises(UnavailableError, match=r"reading stopped: .*the same command goes on"):
        prepare.prepare([Path("tinystories")], tmp_path / "out", **OPTIONS)


def test_shakespeare_is_here_already(ratrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ratrain("prepare", "shakespeare")
    assert code == Exit.DONE
    keys = "--set data.source=shakespeare --set data.tokenizer=gpt2 --set model.vocab_size=50257"
    assert err == f"use it: {keys}\n"
    assert not list(tmp_path.iterdir())
    assert ratrain("prepare", "shakespeare", "--out", "x")[0] == Exit.USAGE


def test_a_missing_set_says_how_it_is_made(ratrain, tmp_path):
    source = tmp_path / "finewebedu"
    code, _, err = ratrain("gpt2", "--scale", "tiny", "--set", f"data.source={source}", "--out", tmp_path / "runs")
    assert code == Exit.MISSING
    assert f"`ratrain prepare finewebedu --out {source}` makes it" in err


def test_files_need_a_folder_to_go_to(ratrain, copy):
    code, _, err = ratrain("prepare", copy[0])
    assert code == Exit.USAGE
    assert "--out DIR is missing" in err
