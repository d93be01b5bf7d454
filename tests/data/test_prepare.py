"""`ratrain prepare`: what becomes of documents, and that a kill at any shard changes no byte."""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest

from ratrain.cli import main
from ratrain.cli import prepare as command
from ratrain.config.schema import DataSection
from ratrain.data import documents, prepare, shard_writer, shards
from ratrain.data.corpus import open_corpus
from ratrain.data.tokenizer import load_tokenizer
from ratrain.errors import CannotCreateError, DataError, Exit, MissingError, UsageError

OPTIONS = {"tokenizer": "shakespeare2k", "val_fraction": 0.2, "shard_tokens": 300, "jobs": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def some_texts(count=40, seed=0) -> list[str]:
    draw = random.Random(seed)
    words = ["the", "king", "is", "come", "to", "hold", "his", "court", "<|endoftext|>", "naïve", "東京"]
    return [f"{i}: " + " ".join(draw.choices(words, k=draw.randrange(1, 120))) for i in range(count)]


def jsonl(path: Path, texts, field="text") -> Path:
    content = "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents_in(folder: Path) -> dict[str, list[str]]:
    corpus = open_corpus(DataSection(source=str(folder), tokenizer="shakespeare2k"), vocab_size=2048)
    found = {}
    for split in ("train", "val"):
        tokens = getattr(corpus, split)
        ids = tokens.read(0, len(tokens))
        assert ids[0] == 2047  # end of text, before each document
        starts = np.flatnonzero(ids == 2047)
        found[split] = [corpus.tokenizer.decode(part[1:].tolist()) for part in np.split(ids, starts[1:])]
    return found


def test_every_document_is_kept_whole_on_one_side(tmp_path):
    texts = some_texts()
    summary = prepare.prepare([jsonl(tmp_path / "in.jsonl", texts)], tmp_path / "out", **OPTIONS)
    found = documents_in(tmp_path / "out")
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    assert [t for t in texts if t in found["train"]] == found["train"]  # in order
    assert {split: len(of) for split, of in found.items()} == summary.documents
    assert found["val"]
    assert summary.shards["train"] > 3


def test_shards_are_full_but_the_last_of_each_split(tmp_path):
    prepare.prepare([jsonl(tmp_path / "in.jsonl", some_texts())], tmp_path / "out", **OPTIONS)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    for entries in meta["splits"].values():
        assert {entry["tokens"] for entry in entries[:-1]} <= {300}
        assert 0 < entries[-1]["tokens"] <= 300
    assert set(bytes_of(tmp_path / "out")) == {"meta.json"} | {e["file"] for s in meta["splits"].values() for e in s}


def test_a_repeated_text_never_lies_on_both_sides(tmp_path):
    texts = ["first", "second"] + some_texts(30) * 3
    prepare.prepare([jsonl(tmp_path / "in.jsonl", texts)], tmp_path / "out", **OPTIONS)
    found = documents_in(tmp_path / "out")
    assert not set(found["train"]) & set(found["val"])


def test_two_documents_give_one_to_each_side(tmp_path):
    (tmp_path / "in.txt").write_text("one<|endoftext|>two")
    prepare.prepare([tmp_path / "in.txt"], tmp_path / "out", **OPTIONS | {"val_fraction": 0.001})
    assert documents_in(tmp_path / "out") == {"train": ["one"], "val": ["two"]}


def test_one_document_is_refused_unless_validation_comes_from_elsewhere(tmp_path):
    (tmp_path / "in.txt").write_text("only one")
    with pytest.raises(DataError, match=r"is one document.*--val-fraction 0"):
        prepare.prepare([tmp_path / "in.txt"], tmp_path / "out", **OPTIONS)
    prepare.prepare([tmp_path / "in.txt"], tmp_path / "out", **OPTIONS | {"val_fraction": 0.0})
    with pytest.raises(MissingError, match=r"holds no \*val\*\.bin"):
        documents_in(tmp_path / "out")
    (tmp_path / "out" / "train_000000.bin").rename(tmp_path / "val_of_mine.bin")
    (tmp_path / "out" / "train_000000.bin").write_bytes((tmp_path / "val_of_mine.bin").read_bytes())
    (tmp_path / "val_of_mine.bin").rename(tmp_path / "out" / "val_of_mine.bin")
    assert documents_in(tmp_path / "out") == {"train": ["only one"], "val": ["only one"]}


@pytest.mark.parametrize("jobs", [2])
def test_the_number_of_jobs_changes_no_byte(tmp_path, monkeypatch, jobs):
    source = jsonl(tmp_path / "in.jsonl", some_texts())
    monkeypatch.setattr(prepare, "_CHUNK_DOCUMENTS", 3)
    prepare.prepare([source], tmp_path / "one", **OPTIONS)
    prepare.prepare([source], tmp_path / "more", **OPTIONS | {"jobs": jobs})
    assert bytes_of(tmp_path / "more") == bytes_of(tmp_path / "one")


def die_before_write(number: int, source: Path, out: Path) -> None:
    """Prepare in this process, which ends at the `number`-th file written, half of it on disk."""
    count = 0

    def dying(path, parts):
        nonlocal count
        count += 1
        if count == number:
            parts = b"".join(map(bytes, parts))
            path.with_name(f".{path.name}.1.part").write_bytes(parts[: len(parts) // 2])
            os._exit(9)
        real(path, parts)

    real = shard_writer.write_file
    shard_writer.write_file = shards.write_file = dying
    prepare.prepare([source], out, **OPTIONS)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_write_then_the_same_command_gives_the_same_bytes(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", some_texts(16))
    prepare.prepare([source], tmp_path / "whole", **OPTIONS)
    fork, number, kept = multiprocessing.get_context("fork"), 0, []
    while True:
        number += 1
        out = tmp_path / f"killed-{number}"
        child = fork.Process(target=die_before_write, args=(number, source, out))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        kept.append(prepare.prepare([source], out, **OPTIONS).kept)
        assert bytes_of(out) == bytes_of(tmp_path / "whole"), number
    assert number > 10
    assert kept == sorted(kept)
    assert kept[-1] > 8  # what was finished is not done again


def stop_after(monkeypatch, shards: int) -> None:
    real, count = shard_writer.write_shard, 0

    def stopping(path, tokens):
        nonlocal count
        count += 1
        if count > shards:
            raise KeyboardInterrupt
        return real(path, tokens)

    monkeypatch.setattr(shard_writer, "write_shard", stopping)


def half_prepared(tmp_path, monkeypatch) -> tuple[Path, Path]:
    source, out = jsonl(tmp_path / "in.jsonl", some_texts()), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        prepare.prepare([source], out, **OPTIONS)
    return source, out


def test_an_unfinished_folder_cannot_be_trained_on(tmp_path, monkeypatch):
    _, out = half_prepared(tmp_path, monkeypatch)
    with pytest.raises(MissingError, match="is not finished; run the same"):
        documents_in(out)


@pytest.mark.parametrize("change", [{"tokenizer": "gpt2"}, {"val_fraction": 0.1}, {"shard_tokens": 301}])
def test_other_options_in_the_same_folder_are_refused(tmp_path, monkeypatch, change):
    source, out = half_prepared(tmp_path, monkeypatch)
    (key,) = change
    with pytest.raises(CannotCreateError, match=f"was prepared with other {key}; .*--fresh"):
        prepare.prepare([source], out, **OPTIONS | change)
    prepare.prepare([source], out, **OPTIONS)
    with pytest.raises(CannotCreateError, match=f"was prepared with other {key}"):
        prepare.prepare([source], out, **OPTIONS | change)


def test_changed_inputs_are_refused_and_fresh_moves_the_old_folder_aside(tmp_path, monkeypatch):
    source, out = half_prepared(tmp_path, monkeypatch)
    jsonl(source, some_texts(seed=1))
    with pytest.raises(CannotCreateError, match="other sources"):
        prepare.prepare([source], out, **OPTIONS)
    prepare.prepare([source], out, **OPTIONS, fresh=True)
    found = documents_in(out)
    assert sorted(found["train"] + found["val"]) == sorted(some_texts(seed=1))
    assert (tmp_path / "out.old-1" / "state.json").exists()


def test_a_finished_folder_is_left_as_it_is(tmp_path, monkeypatch):
    source = jsonl(tmp_path / "in.jsonl", some_texts())
    first = prepare.prepare([source], tmp_path / "out", **OPTIONS)
    monkeypatch.setattr(prepare, "_write_all", lambda *_, **__: pytest.fail("written again"))
    again = prepare.prepare([source], tmp_path / "out", **OPTIONS)
    assert (again.tokens, again.documents) == (first.tokens, first.documents)
    assert again.kept == 40


def test_a_damaged_leftover_is_refused(tmp_path, monkeypatch):
    source, out = half_prepared(tmp_path, monkeypatch)
    (out / "train_000000.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"train_000000\.bin: is missing or truncated; --fresh"):
        prepare.prepare([source], out, **OPTIONS)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(CannotCreateError, match="did not make"):
        prepare.prepare([jsonl(tmp_path / "in.jsonl", ["a", "b"])], out, **OPTIONS)
    assert os.listdir(out) == ["thesis.tex"]


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    source, out = jsonl(tmp_path / "in.jsonl", ["a", "b"]), tmp_path / "out"
    with prepare._locked(out), pytest.raises(CannotCreateError, match="another process"):
        prepare.prepare([source], out, **OPTIONS)


def test_folders_are_searched_for_all_kinds_of_text(tmp_path):
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    jsonl(folder / "b" / "2.jsonl.gz", ["three", " \n", "four"])
    jsonl(folder / "a.jsonl", ["one", "", "two"])
    (folder / "c.txt").write_bytes(b"\xef\xbb\xbffive\r\n<|endoftext|>\nsix\n\n<|endoftext|>\n  <|endoftext|>")
    (folder / "notes.md").write_text("not read")
    read = documents.read_documents(documents.find_sources([folder]), field="text")
    assert [d.text for d in read] == ["one", "two", "three", "four", "five\r\n", "six\n\n"]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 13, 64])
def test_documents_do_not_depend_on_how_a_file_is_read(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(documents, "_PIECE", piece)
    text = "東京 <|endoftext|>\n<|endo<|endoftext|>naïve<|endoftext|>" * 3 + "tail <|endoftext"
    (tmp_path / "in.txt").write_text(text, encoding="utf-8")
    expected = [part.removeprefix("\n") for part in text.split("<|endoftext|>") if part.strip()]
    read = list(documents.read_documents([tmp_path / "in.txt"], field="text"))
    assert [d.text for d in read] == expected
    assert read[-1].position == len(text.encode())
    for done in read:
        rest = documents.read_documents([tmp_path / "in.txt"], field="text", file=0, number=done.number)
        assert [d.text for d in rest] == expected[done.number :]


BAD = {
    "broken JSON": (b'{"text": "a"}\n{"text": \n', r"in\.jsonl:2: is not JSON"),
    "JSON too deep": (b"[" * 100_000, r"in\.jsonl:1: is not JSON"),
    "a list": (b"[1]\n", r"in\.jsonl:1: is a JSON list; expected an object with a field 'text'"),
    "no such field": (b'{"story": "a"}\n', r"in\.jsonl:1: has no text in field 'text' \(its fields: 'story'\)"),
    "a number": (b'{"text": 3}\n', r"in\.jsonl:1: has no text in field 'text': it is a number; expected a string"),
    "an object": (b'{"text": {"a": 1}}\n', r"in\.jsonl:1: has no text in field 'text': it is an object; expected"),
    "nothing but null": (b'{"text": null}\n', "no input holds any text"),
    "not UTF-8": (b'{"text": "\xff"}\n', r"in\.jsonl:1: is not JSON"),
    "nothing": (b"\n\n", "no input holds any text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, case):
    content, message = BAD[case]
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare.prepare([tmp_path / "in.jsonl"], tmp_path / "out", **OPTIONS)

    assert not (tmp_path / "out").exists()  # with other options, or mended, it begins anew


def test_null_is_passed_over_and_counted_also_across_a_stop(tmp_path, monkeypatch):
    rows = [text for at, one in enumerate(some_texts()) for text in ([one, None] if at % 4 == 3 else [one])]
    source = jsonl(tmp_path / "in.jsonl", rows)
    whole = prepare.prepare([source], tmp_path / "whole", **OPTIONS)
    assert (whole.skipped, sum(whole.documents.values())) == (10, 40)
    with monkeypatch.context() as patch:
        stop_after(patch, shards=2)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare([source], tmp_path / "out", **OPTIONS)
    rest = prepare.prepare([source], tmp_path / "out", **OPTIONS)
    assert 0 < rest.kept < 40
    assert rest.skipped == 10
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_without_validation_documents_nothing_is_advised_that_would_fail(tmp_path, capsys):
    source = jsonl(tmp_path / "in.jsonl", [*some_texts(), None])
    assert main(["prepare", str(source), "--out", str(tmp_path / "out"), "--val-fraction", "0", "--jobs", "1"]) == 0
    told = capsys.readouterr().err
    assert "skipped: 1 records whose text is null" in told
    assert "no validation shard: add a val_*.bin of your own to" in told
    assert "use it" not in told


def test_a_tokenizer_that_nobody_knows_is_a_usage_error(tmp_path):
    source = jsonl(tmp_path / "in.jsonl", some_texts())
    with pytest.raises(SystemExit) as left:
        main(["prepare", str(source), "--out", str(tmp_path / "out"), "--tokenizer", "cl100k"])
    assert left.value.code == Exit.USAGE


def test_bytes_that_are_no_text_are_named_by_place(tmp_path):
    (tmp_path / "in.txt").write_bytes("é".encode() * 10 + b"\xff" + b"x" * 10)
    with pytest.raises(DataError, match=r"in\.txt: is not UTF-8: byte 20 is 0xff"):
        prepare.prepare([tmp_path / "in.txt"], tmp_path / "out", **OPTIONS)


def test_a_truncated_archive_is_refused(tmp_path):
    source = jsonl(tmp_path / "in.jsonl.gz", some_texts())
    source.write_bytes(source.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"in\.jsonl\.gz: cannot be unpacked"):
        prepare.prepare([source], tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.txt", MissingError, "no such file"),
        ("x.csv", DataError, "cannot be read as text"),
        ("empty", MissingError, "holds no"),
    ],
)
def test_inputs_that_are_no_text_are_refused(tmp_path, name, error, message):
    (tmp_path / "x.csv").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        prepare.prepare([tmp_path / name], tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    "change", [{"val_fraction": 1.0}, {"val_fraction": float("nan")}, {"shard_tokens": 0}, {"jobs": 0}]
)
def test_options_out_of_range_are_refused(tmp_path, change):
    (key,) = change
    with pytest.raises(UsageError, match="--" + key.replace("_", "-")):
        prepare.prepare([], tmp_path / "out", **OPTIONS | change)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_what_a_manifest_needs(tmp_path, capsys):
    source = jsonl(tmp_path / "in.jsonl", some_texts())
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(source), "--out", str(tmp_path / "out"), "--jobs", "1"]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        f"use it: --set data.source={tmp_path / 'out'} --set data.tokenizer=gpt2 --set model.vocab_size=50257"
    )
    total = sum(1 + len(load_tokenizer("gpt2").encode_ordinary(text)) for text in some_texts())
    assert lines[0] == f"100%  40 documents  {total:,} tokens  0 s"


def test_text_with_lone_surrogates_is_prepared(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a \\ud800 b"}\n{"text": "c"}\n')
    assert prepare.prepare([tmp_path / "in.jsonl"], tmp_path / "out", **OPTIONS).documents == {"train": 1, "val": 1}
