"""The folder of a run: one holder, moved aside whole, found by name."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from ratrain.errors import CannotCreateError, Exit, MissingError, UsageError
from ratrain.storage.folder import RunFolder, find_run

HOLD = """
import sys
from pathlib import Path
from ratrain.storage.folder import RunFolder
from ratrain.errors import RatrainError
try:
    RunFolder(Path(sys.argv[1])).open()
except RatrainError as error:
    print(error)
    sys.exit(error.exit)
"""


def hold_elsewhere(path):
    return subprocess.run([sys.executable, "-c", HOLD, path], capture_output=True, text=True)


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path):
    with RunFolder(tmp_path / "run").open():
        second = hold_elsewhere(tmp_path / "run")
    assert second.returncode == Exit.CANNOT_CREATE
    assert f"process {os.getpid()} on " in second.stdout
    assert "is training here" in second.stdout


def test_the_lock_ends_with_its_holder(tmp_path):
    assert hold_elsewhere(tmp_path / "run").returncode == 0  # ended without giving it back
    with RunFolder(tmp_path / "run").open():
        pass
    RunFolder(tmp_path / "run").open().close()


def test_a_second_holder_in_one_process_is_refused_and_takes_nothing_from_the_first(tmp_path):
    with RunFolder(tmp_path).open():
        with pytest.raises(CannotCreateError):
            RunFolder(tmp_path).open()
        assert hold_elsewhere(tmp_path).returncode == Exit.CANNOT_CREATE


def test_a_look_tells_whether_a_run_is_held_and_keeps_nobody_out(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_held()
    assert not folder.path.exists()
    with folder.open():
        assert RunFolder(folder.path).is_held()
    assert not folder.is_held()
    with folder.open():
        pass


def test_a_look_in_the_moment_of_opening_is_waited_out(tmp_path, monkeypatch):
    with RunFolder(tmp_path).open():
        pass
    look = os.open(tmp_path / "run.lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    waits = []

    def end_the_look(seconds):
        waits.append(seconds)
        os.close(look)

    monkeypatch.setattr("ratrain.lock.time.sleep", end_the_look)
    with RunFolder(tmp_path).open():
        assert len(waits) == 1  # the look was in the way, and the lock was taken right after it
        assert RunFolder(tmp_path).is_held()


def test_a_folder_below_a_file_is_refused_with_advice(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreateError, match="choose another --out"):
        RunFolder(tmp_path / "file" / "run").open()


def test_moving_aside_keeps_every_earlier_run(tmp_path):
    folder = RunFolder(tmp_path / "s1")
    assert folder.move_aside() is None
    for number in (1, 2, 3):
        folder.write("note", str(number))
        assert folder.move_aside() == tmp_path / f"s1.old-{number}"
    assert [(tmp_path / f"s1.old-{n}" / "note").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
    assert not folder.path.exists()


def test_state_is_what_was_written_last_and_empty_where_it_cannot_be_read(tmp_path):
    folder = RunFolder(tmp_path / "s1")
    assert folder.read_state() == {}
    folder.write_state(status="running", step=3)
    folder.write_state(status="done", step=4)
    assert folder.read_state().items() >= {"status": "done", "step": 4, "pid": os.getpid()}.items()
    for damaged in ("", "[1]", '{"status": "do'):
        folder.write("state.json", damaged)
        assert folder.read_state() == {}


@pytest.fixture
def runs(tmp_path):
    """A folder with these runs; the later in the list, the newer."""

    def runs(*names):
        for age, name in enumerate(names):
            folder = RunFolder(tmp_path / name)
            folder.write("resolved.toml", "")
            folder.write_state(status="done")
            os.utime(folder.path / "state.json", (age, age))
        return tmp_path

    return runs


def test_a_run_is_found_by_path_id_prefix_and_age(runs):
    root = runs("v9-tiny-aaaaaaaa/s1", "v1-tiny-cccccccc/s1", "v1-study-bbbbbbbb/s1", "v10-tiny-dddddddd/s1")
    assert find_run(str(root / "v9-tiny-aaaaaaaa/s1"), root) == root / "v9-tiny-aaaaaaaa/s1"
    assert find_run("v9", root) == root / "v9-tiny-aaaaaaaa/s1"
    assert find_run("v1-s", root) == root / "v1-study-bbbbbbbb/s1"
    assert find_run("@last", root) == root / "v10-tiny-dddddddd/s1"


def test_an_id_is_not_taken_for_the_beginning_of_another(runs):
    root = runs("v1-tiny-cccccccc/s1", "v10-tiny-dddddddd/s1")
    assert find_run("v1", root) == root / "v1-tiny-cccccccc/s1"


def test_a_whole_name_is_not_taken_for_a_prefix(runs):
    root = runs("v1-tiny-cccccccc/s1", "v1-tiny-cccccccc/s10")
    assert find_run("v1-tiny-cccccccc/s1", root) == root / "v1-tiny-cccccccc/s1"


def test_a_name_that_fits_several_runs_is_refused_with_all_of_them(runs):
    root = runs("v1-tiny-cccccccc/s1", "v1-tiny-cccccccc/s2")
    with pytest.raises(UsageError, match=r"fits 2 runs: .*s1.*s2"):
        find_run("v1", root)


def test_a_name_that_fits_none_is_refused_with_those_that_there_are(runs):
    root = runs("v9-tiny-aaaaaaaa/s1")
    with pytest.raises(MissingError, match="v9-tiny-aaaaaaaa/s1"):
        find_run("v7", root)


@pytest.mark.parametrize("name", ["@last", "v1"])
def test_an_empty_folder_holds_no_run(tmp_path, name):
    with pytest.raises(MissingError, match="none"):
        find_run(name, tmp_path)


def test_an_empty_word_names_no_run_even_where_there_is_only_one(runs):
    with pytest.raises(UsageError, match="empty word"):
        find_run("", runs("v9-tiny-aaaaaaaa/s1"))


def test_runs_moved_aside_are_not_found(runs):
    root = runs("v1-tiny-cccccccc/s1", "v1-tiny-cccccccc/s1.old-1")
    assert find_run("v1", root) == find_run("@last", root) == root / "v1-tiny-cccccccc/s1"
