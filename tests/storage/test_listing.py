"""The runs in a folder as a person asks after them: what is listed, kept, deleted and followed."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ratrain.errors import DataError, Exit
from ratrain.event_log import encode
from ratrain.events import Evaluated, RunStarted, Window
from ratrain.storage import listing as ratrain_runs
from ratrain.storage.folder import RunFolder
from ratrain.storage.listing import list_runs, table, tail
from ratrain.storage.notes import read_notes, tag

V9, V1, V10 = "v9-tiny-aaaaaaaa/s1", "v1-tiny-bbbbbbbb/s1", "v10-tiny-cccccccc/s1"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    yield
    torch.use_deterministic_algorithms(False)


def started(total):
    """Of a run of that many steps."""
    texts = dict.fromkeys(("id", "title", "scale", "folder", "recipe_hash", "run_hash", "device", "precision"), "")
    numbers = ("seed_init", "seed_data", "parameters", "flops_per_token", "kv_bytes_per_token", "train_tokens")
    numbers = dict.fromkeys((*numbers, "val_tokens", "tokens_per_step"), 1)
    return RunStarted(**texts, **numbers, total_steps=total, budget={}, peak_flops={}, baselines={})


def window(step, *, spent, rate):
    numbers = dict.fromkeys(("tokens", "skipped", "lr", "seconds", "peak_memory", "graphs", "recompiles"), 1)
    unknown = dict.fromkeys(("mfu", "mfu_datasheet", "eta"))
    return Window(
        step=step, spent=spent, losses=(4.5,), grad_norms=(1.0,), tokens_per_second=rate, **numbers, **unknown
    )


def run_left(name, *, status="done", step=20, loss=4.25, total=20, rates=(100, 300, 200), moved=0.0):
    """The folder that a run of this name would have left, `moved` seconds ago."""
    folder = RunFolder(Path("runs") / name)
    events = [started(total)]
    spread = [step - len(rates) + 1 + at for at in range(len(rates))]
    events += [window(at, spent=at / (total or 40), rate=rate) for at, rate in zip(spread, rates, strict=True)]
    events += [] if loss is None else [Evaluated(step, loss, tokens=1, seconds=1.0)]
    folder.write("events.jsonl", "".join(encode(event, seconds=0.5) + "\n" for event in events))
    folder.write("resolved.toml", "")
    folder.write("run.lock", "")
    folder.write("log.txt", "".join(f"line {n}\n" for n in range(1, 31)))
    folder.write_state(status=status, step=step)
    then = time.time() - moved
    for file in folder.path.iterdir():
        os.utime(file, (then, then))
    return folder.path


def names(*argv, **options):
    return [run.name for run in list_runs(Path("runs"), *argv, **options)]


# the list


def test_nothing_here_needs_torch_rich_or_numpy():
    run_left(V9)
    code = (
        "import sys; from ratrain.cli import main\n"
        "for words in ('runs', 'runs tag v9 x', 'tail v9', 'runs rm v9 --yes'): main(words.split())\n"
        "print('LOADED', [m for m in ('torch', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr


def test_a_run_is_told_by_name_status_step_loss_speed_and_age(ratrain):
    run_left(V9, moved=3 * 3600)
    _, out, _ = ratrain("runs")
    title, row = out.splitlines()
    assert title.split() == ["run", "status", "step", "val", "loss", "tok/s", "moved"]
    assert row.split() == [V9, "done", "20/20", "4.2500", "200", "3", "h", "ago"]


def test_a_budget_in_seconds_is_told_in_percent(ratrain):
    run_left(V9, status="preempted", total=None)
    assert " 50 % " in ratrain("runs")[1]


def test_a_run_that_claims_to_run_without_its_lock_has_died():
    path = run_left(V9, status="running")
    assert [run.status for run in list_runs(Path("runs"))] == ["died"]
    with RunFolder(path).open():
        assert [run.status for run in list_runs(Path("runs"))] == ["running"]
    run_left(V9, status="preempted")
    assert [run.status for run in list_runs(Path("runs"))] == ["preempted"]


@pytest.mark.parametrize(
    ("order", "expected"), [("when", [V1, V10, V9]), ("name", [V1, V10, V9]), ("val", [V10, V9, V1])]
)
def test_runs_are_sorted_as_asked(order, expected):
    run_left(V9, loss=4.0, moved=30)
    run_left(V1, loss=5.0, moved=10)
    run_left(V10, loss=3.0, moved=20)
    assert names(sort=order) == expected


def test_losses_that_are_absent_or_nan_come_last():
    run_left(V1, loss=math.nan)
    run_left(V10, loss=None)
    run_left(V9, loss=9.0)
    assert names(sort="val") == [V9, V1, V10]


def test_steps_are_sorted_from_most_to_none():
    run_left(V1, step=3)
    run_left(V10, step=300, total=1000)
    empty = run_left(V9)
    (empty / "events.jsonl").unlink()
    (empty / "state.json").unlink()
    assert names(sort="step") == [V10, V1, V9]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        (None, [V1, V10, V9]),
        ("v1", [V1]),
        ("v1*", [V1, V10]),
        ("*/s1", [V1, V10, V9]),
        ("v9-tiny-aaaaaaaa", [V9]),
        ("x", []),
    ],
)
def test_a_pattern_fits_names_folders_and_ids(glob, expected):
    for name in (V9, V1, V10):
        run_left(name)
    assert names(glob, sort="name") == expected


def test_no_runs_is_no_fault(ratrain):
    assert ratrain("runs") == (0, "no runs in runs\n", "")
    assert ratrain("runs", "v9", "--json") == (0, "[]\n", "")


def test_json_is_strict_and_keeps_what_is_unknown_as_null(ratrain):
    run_left(V9, loss=math.nan, total=None, status="diverged")
    _, out, _ = ratrain("runs", "--json")
    (row,) = json.loads(out, parse_constant=pytest.fail)
    assert (row["name"], row["status"], row["loss"], row["total_steps"]) == (V9, "diverged", None, None)
    assert row["path"] == f"runs/{V9}"
    assert row["tokens_per_second"] == 200
    assert row["moved"].endswith("Z")


@pytest.mark.parametrize("name", ["events.jsonl", "state.json", "notes.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\n", b"[1]\n", b'{"event": "Window"', b"[" * 100_000])
def test_a_damaged_file_costs_its_own_facts_only(ratrain, name, content):
    (run_left(V9) / name).write_bytes(content)
    run_left(V1)
    code, out, err = ratrain("runs")
    assert (code, err) == (0, "")
    assert {V9, V1} <= set(out.split())


def test_a_line_that_is_being_written_is_passed_over():
    path = run_left(V9)
    with (path / "events.jsonl").open("a") as file:
        file.write('{"schema": 1, "event": "Evaluated", "lo')
    assert list_runs(Path("runs"))[0].loss == 4.25


def test_an_evaluation_far_back_is_found_and_the_speed_is_of_the_end(monkeypatch):
    monkeypatch.setattr(ratrain_runs, "_LOOK", 256)
    path = run_left(V9, step=4, total=400, rates=(9, 9))
    with (path / "events.jsonl").open("a") as file:
        for step in range(5, 300):
            file.write(encode(window(step, spent=0.5, rate=50), seconds=0.5) + "\n")
    (run,) = list_runs(Path("runs"))
    assert (run.loss, run.step, run.total_steps, run.tokens_per_second) == (4.25, 299, 400, 50)


def test_narrow_terminals_lose_the_note_first_at_a_word_and_no_line_is_longer(ratrain):
    path = run_left(V9)
    tag(path, ["good"])
    ratrain("runs", "note", "v9", "a learning rate that works well")
    found = list_runs(Path("runs"))
    whole = table(found, width=None)
    assert whole.endswith("a learning rate that works well")
    width = max(map(len, whole.splitlines()))
    for narrow in range(width, len(V9) - 1, -1):
        row = table(found, width=narrow).splitlines()[-1]
        assert len(row) <= narrow
        assert set(row.split()) <= {*whole.split(), "…"}
        assert row.startswith(V9)
    assert table(found, width=width - 3).splitlines()[-1].endswith("good  a learning rate that works …")


# tags and notes


def test_tags_and_notes_are_kept_and_shown(ratrain):
    run_left(V9)
    assert ratrain("runs", "tag", "v9", "good", "long")[0] == 0
    ratrain("runs", "tag", "@last", "good", "best")
    ratrain("runs", "note", f"runs/{V9}", "lower", "rate\nhelps")
    assert ratrain("runs", "untag", "v9", "long")[1] == f"runs/{V9}: good, best\n"
    row = ratrain("runs")[1].splitlines()[1]
    assert row.endswith("good,best  lower rate helps")
    ratrain("runs", "note", "v9", "")
    assert ratrain("runs")[1].splitlines()[1].endswith("good,best")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["tag", "v9", "two words"], Exit.USAGE, "one word"),
        (["tag", "v9", "a,b"], Exit.USAGE, "one word"),
        (["tag", "v9", "\x1b[31m"], Exit.USAGE, "one word"),
        (["untag", "v9", "bad"], Exit.MISSING, "has no tag 'bad'; its tags: none"),
    ],
)
def test_what_is_no_tag_is_refused(ratrain, argv, code, message):
    run_left(V9)
    got, _, err = ratrain("runs", *argv)
    assert (got, message in err) == (code, True), err


def test_notes_that_cannot_be_read_are_not_written_over(ratrain):
    path = run_left(V9)
    (path / "notes.json").write_text('{"tags": [1]}')
    with pytest.raises(DataError, match=r"notes\.json: cannot be read"):
        read_notes(path)
    assert ratrain("runs", "note", "v9", "new")[0] == Exit.BAD_DATA
    assert (path / "notes.json").read_text() == '{"tags": [1]}'


# deleting


def test_without_a_terminal_nothing_is_deleted_unless_yes_is_said(ratrain, monkeypatch):
    path = run_left(V9)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, err = ratrain("runs", "rm", "v9")
    assert (code, path.exists()) == (Exit.USAGE, True)
    assert "--yes" in err
    assert ratrain("runs", "rm", "v9", "--yes") == (0, f"deleted {path}\n", "")
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(("answer", "left"), [("y", False), ("", True), ("n", True)])
def test_a_person_is_asked(ratrain, monkeypatch, answer, left):
    path = run_left(V9)
    monkeypatch.setattr("ratrain.cli.runs.sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: answer)
    code, out, _ = ratrain("runs", "rm", "v9", "@last")
    assert (code, path.exists()) == (0, left)
    assert out.count("MB") == 1  # named twice, one run


def test_a_run_that_is_being_trained_is_refused_and_so_are_those_beside_it(ratrain):
    held, other = run_left(V9), run_left(V1)
    with RunFolder(held).open():
        code, _, err = ratrain("runs", "rm", "v1", "v9", "--yes")
    assert code == Exit.CANNOT_CREATE
    assert f"process {os.getpid()} on " in err
    assert "stop it first" in err
    assert other.exists()


def test_a_sibling_seed_stays(ratrain):
    run_left(V9)
    sibling = run_left("v9-tiny-aaaaaaaa/s2")
    assert ratrain("runs", "rm", V9, "--yes")[0] == 0
    assert names() == ["v9-tiny-aaaaaaaa/s2"]
    assert sorted(os.listdir(sibling.parent)) == ["s2"]


def test_a_folder_in_which_nothing_was_trained_and_a_link_are_refused(ratrain, tmp_path):
    (tmp_path / "resolved.toml").touch()
    code, _, err = ratrain("runs", "rm", ".", "--yes")
    assert (code, "no run.lock" in err) == (Exit.USAGE, True)
    path = run_left(V9)
    (tmp_path / "link").symlink_to(path.resolve())
    code, _, err = ratrain("runs", "rm", "link", "--yes")
    assert (code, "is a link" in err) == (Exit.USAGE, True)
    assert path.exists()


# following


def test_the_end_of_a_log_is_shown(ratrain):
    run_left(V9)
    assert ratrain("tail", "v9")[1].splitlines() == [f"line {n}" for n in range(21, 31)]
    assert ratrain("tail", "v9", "-n", 2)[1] == "line 29\nline 30\n"
    assert ratrain("tail", "v9", "-n", 0) == (0, "", "")


def test_a_run_that_told_nothing_is_told(ratrain):
    (run_left(V9) / "log.txt").unlink()
    code, _, err = ratrain("tail", "v9")
    assert (code, "log.txt: cannot be read" in err) == (Exit.MISSING, True)


@pytest.mark.parametrize(
    ("status", "reason"), [("running", "died without an error message"), ("failed", "no known reason")]
)
def test_an_end_that_the_log_cannot_tell_is_told_beside_it(ratrain, status, reason):
    run_left(V9, status=status)
    code, out, err = ratrain("tail", "v9", "-n", 1)
    assert (code, out) == (0, "line 30\n")
    assert reason in err


def test_following_tells_all_that_is_written_and_ends_with_the_run(monkeypatch):
    path = run_left(V9)
    held = RunFolder(path).open()
    numbers = iter(range(31, 41))

    def train_meanwhile(seconds):
        """What the run does between two looks: a line, and after the last one it ends."""
        if seconds != ratrain_runs._POLL:
            return  # a lock waits too
        with (path / "log.txt").open("a") as log:
            print(f"line {next(numbers)}", file=log)
        if numbers.__length_hint__() == 0:
            held.close()

    monkeypatch.setattr(ratrain_runs.time, "sleep", train_meanwhile)
    heard = "".join(tail(path, 1, follow=True)).splitlines()
    assert heard == [f"line {n}" for n in range(30, 41)]


def test_following_ends_when_the_run_is_moved_aside_and_another_takes_its_place(monkeypatch):
    monkeypatch.setattr(ratrain_runs, "_POLL", 0.01)
    path = run_left(V9)
    with RunFolder(path).open() as old:
        heard = tail(path, 1, follow=True)
        assert next(heard) == "line 30\n"
        old.move_aside()
        with RunFolder(run_left(V9)).open():
            assert list(heard) == []


def test_leaving_a_run_that_is_followed_is_no_fault(ratrain, monkeypatch):
    def leave(_seconds):
        raise KeyboardInterrupt

    path = run_left(V9)
    with RunFolder(path).open():
        monkeypatch.setattr(ratrain_runs.time, "sleep", leave)
        assert ratrain("tail", "v9", "-n", 1, "--follow") == (0, "line 30\n", "")


# a run of its own


def test_a_real_run_is_listed_followed_and_deleted(ratrain):
    sizes = ["train.budget={steps=4}", "log.every=2", "eval.windows=2", "compile.scope=off"]
    words = [word for size in sizes for word in ("--set", size)]
    code, said, _ = ratrain("v9", "--scale", "tiny", "--device", "cpu", *words)
    assert code == 0
    (row,) = json.loads(ratrain("runs", "v9", "--json")[1])
    assert row["name"].startswith("v9-tiny-")
    assert (row["status"], row["step"], row["total_steps"], row["spent"]) == ("done", 4, 4, 1.0)
    assert row["loss"] > 0
    assert row["tokens_per_second"] > 0
    stamped = ratrain("tail", "@last", "-n", 100, "--follow")[1].splitlines()
    assert [line.partition(" ")[2] for line in stamped] == said.splitlines()[1:-1]
    assert ratrain("runs", "rm", "@last", "--yes")[0] == 0
    assert ratrain("runs")[1] == "no runs in runs\n"
