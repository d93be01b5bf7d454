"""Two trees side by side: what got worse is found, told and failed; whatever cannot be compared says why."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.compare import commits
from bench.compare.commits import Compared, exported, main, told
from bench.compare.verdict import Verdict
from bench.compare.worker import ArmError

ROOT = Path(__file__).resolve().parents[3]
SAME = {"graphs": 2, "syncs": 30, "peak_bytes": 1000, "ops": 500}


@pytest.fixture
def asked(monkeypatch, capsys):
    """Runs the command line on a tree: (code, stdout, stderr)."""
    monkeypatch.delenv("RECORD", raising=False)
    monkeypatch.setattr(commits.signal, "signal", lambda *_: None)

    def asked(*words, root=ROOT):
        code = main(words, root)
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return code, out.out, out.err

    return asked


@pytest.fixture
def repository(tmp_path):
    """A repository of its own with one commit of the package as it is here."""
    shutil.copytree(ROOT / "ratrain", tmp_path / "ratrain", ignore=shutil.ignore_patterns("__pycache__", "runs"))
    who = ("-c", "user.name=bench", "-c", "user.email=bench@example.invalid", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "as it was")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.slow
def test_a_read_planted_into_the_step_fails_the_gate(repository, asked, monkeypatch):
    kept = {}
    monkeypatch.setattr(commits, "record", lambda suite, rows, against: kept.update(rows))
    step = repository / "ratrain/engine/step.py"
    text = step.read_text()
    step.write_text(text.replace("total += loss.detach()", "total += loss.detach(); loss.item()"))
    assert step.read_text() != text
    words = ("HEAD", "--variants", "v9", "--scale", "tiny", "--set", "compile.scope=off")
    code, out, err = asked(*words, "--sets", "2", "--rounds", "3", root=repository)
    assert code == 1, out + err
    assert "FAILED: v9: syncs got worse" in err
    line = next(line for line in out.splitlines() if line.strip().startswith("syncs"))
    assert line.endswith("WORSE")
    assert "edited: measured as it is" in out and " ms  " in out and "noise ±" in out
    row = kept["v9"]
    assert row["now"]["syncs"] == row["then"]["syncs"] + 1
    assert all(row["now"][key] == row["then"][key] for key in ("allocated_bytes", "peak_bytes", "state_bytes"))
    assert not subprocess.run(["git", "worktree", "prune", "-n"], cwd=repository, capture_output=True).stdout


def test_a_commit_that_is_none_is_named(asked, repository):
    told = "error: no-such-ref: no such commit; REF is what git rev-parse takes\n"
    assert asked("no-such-ref", root=repository) == (2, "", told)


def test_a_tree_without_the_package_is_told(asked, tmp_path):
    code, _, err = asked("HEAD", root=tmp_path)
    assert (code, err) == (2, f"error: {tmp_path} has no package ratrain\n")


def test_a_folder_outside_git_is_told(asked, tmp_path):
    (tmp_path / "ratrain").mkdir()
    code, _, err = asked("HEAD", root=tmp_path)
    assert code == 2 and err.startswith("error: ")


def test_without_git_there_is_one_message(asked, monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(commits.subprocess, "run", absent)
    assert asked("HEAD") == (2, "", "error: git is not installed: a commit cannot be had without it\n")


def test_the_export_is_removed_whatever_happens(repository):
    with pytest.raises(KeyboardInterrupt), exported("HEAD", repository) as trees:
        assert (trees["old"].folder / "ratrain/kernels").exists()
        assert trees["old"].folder != trees["new"].folder == repository
        raise KeyboardInterrupt
    assert not trees["old"].folder.exists()


def test_an_interrupt_ends_with_its_code(asked, repository, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commits, "compare", interrupted)
    assert asked("HEAD", root=repository)[::2] == (130, "\ninterrupted\n")


def test_a_variant_that_fails_in_one_tree_says_in_which(asked, repository, monkeypatch):
    def failed(*_):
        raise ArmError("v99 of abc: v99: no such manifest")

    monkeypatch.setattr(commits, "compare", failed)
    code, _, err = asked("HEAD", "--variants", "v99", root=repository)
    assert (code, err) == (2, "error: v99 of abc: v99: no such manifest\n")


@pytest.mark.parametrize(
    ("changed", "worse"),
    [
        ({}, []),
        ({"syncs": 31}, ["syncs"]),
        ({"syncs": 29, "peak_bytes": 1001}, ["peak_bytes"]),
        ({"ops": 900}, []),  # told: fewer and dearer ones may be what was meant
        ({"instructions": 1_002_001}, ["instructions"]),
        ({"instructions": 1_001_999}, []),
    ],
)
def test_the_gate_holds_what_is_exact(changed, worse):
    old = {**SAME, "instructions": 1_000_000}
    row = compared(old, SAME, {**old, **changed})
    assert row.worse() == worse
    assert row.worse(allowed=worse) == []
    assert set(changed) == {*row.changed()}


def test_a_counter_that_differs_in_the_old_tree_itself_is_no_ground():
    row = compared(SAME, {**SAME, "syncs": 31}, {**SAME, "syncs": 40})
    assert row.worse() == []
    assert any("unsure: the old tree differs from itself" in line for line in told(row, ()))


def test_time_only_warns():
    row = compared(SAME, SAME, SAME)
    lines = list(told(row, ()))
    assert row.worse() == [] and lines[-1].strip() == "warning: slower; time only warns"
    assert "1.060 [1.040, 1.080]" in lines[0] and lines[0].endswith("slower")
    assert row.row()["verdict"] == "slower" and row.row()["ms"] == 100.0


def compared(old, twin, new):
    """A variant found slower, with these counters."""
    seconds = {side: [0.1, 0.1, 0.1] for side in ("old", "twin", "new")}
    found = Verdict(1.06, 1.04, 1.08, band=0.02, sets=5)
    return Compared("v9", found, seconds, {"old": old, "twin": twin, "new": new})
