"""A ladder from the command line: killed twice on the way it comes to the same conclusion, and reports it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ratrain as package

WORDS = ("--device", "cpu", "--jobs", "2", "--no-costs")


def climb(file: Path, out: Path, *, killed_after: int | None = None) -> int:
    """Runs the ladder in a process of its own; kills all its processes after so many runs have ended."""
    command = [sys.executable, "-m", "ratrain", "--ladder", str(file), "--out", str(out), *WORDS]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    ended = 0
    assert process.stdout
    for line in process.stdout:
        ended += line.startswith("[") and "validation loss" in line
        if killed_after is not None and ended >= killed_after:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    return process.wait()


@pytest.mark.slow
def test_a_ladder_killed_twice_comes_to_the_conclusion_of_an_unbroken_one(ladder, tmp_path, ratrain):
    file = ladder(ladder().read_text().partition("[arm.more]")[0])
    assert climb(file, tmp_path / "whole") == 0
    assert climb(file, tmp_path / "broken", killed_after=5) == -signal.SIGKILL
    assert climb(file, tmp_path / "broken", killed_after=20) == -signal.SIGKILL
    assert climb(file, tmp_path / "broken") == 0
    whole, broken = (
        json.loads((tmp_path / out / "ladders" / "steps" / "ladder.json").read_text()) for out in ("whole", "broken")
    )
    assert whole == broken
    assert whole["conclusion"]["arms"]["v9"]["word"]
    code, said, _ = ratrain("report", "steps", "--out", tmp_path / "whole")
    assert code == 0
    assert "last rung held out" in said
    page = (tmp_path / "whole" / "ladders" / "steps" / "report.html").read_text()
    assert "Gain against compute" in page
    assert "steps-rung4" in page
    code, said, _ = ratrain("--ladder", file, "--out", tmp_path / "whole", *WORDS, "--rung", 1)
    assert code == 0
    assert "v9" in said
    code, _, error = ratrain("--ladder", file, "--out", tmp_path / "whole", *WORDS, "--at", "1e20")
    assert code == 2
    assert "gains are predicted from the first rung's" in error
    code, said, _ = ratrain("--ladder", file, "--out", tmp_path / "whole", *WORDS, "--at", "1e10")
    assert code == 0
    assert "1e+10 FLOPs" in said


def short(text: str, own: str) -> str:
    """Returns the ladder with keys of its own, fewer tokens and no planted arm."""
    text = text.partition("[arm.more]")[0].replace("seeds = [4, 3, 3, 3]\n", "")
    return text.replace("[128, 320, 1000, 2600]", "[128, 320, 640, 2000]").replace("[rungs]", f"{own}\n\n[rungs]")


@pytest.mark.slow
def test_a_tuned_ladder_compares_the_tuned_arms(ladder, tmp_path):
    tune = "tune = { grid = { schedule.lr = [3e-3, 1e-2] }, seed = { init = [11] } }\nseed.init = [1, 2, 3]"
    found = package.ladder(ladder(short(ladder().read_text(), tune)), out=tmp_path, device="cpu")
    assert found.exit == 0
    assert found.path == tmp_path / "ladders" / "steps"
    for result in found.climbed.results:
        assert [row.arm.role for row in result.judged] == ["tuned", "tuned"]
        losses = result.losses()
        assert losses
        assert losses.table.names == ("v0", "v9")
        assert sorted(losses.curve) == pytest.approx([0.7, 1.0, 1.4], rel=0.3)  # whole steps of few
    assert "learning rates tuned at every rung" in found.page.read_text()
    assert set(found.outlooks) | set(found.climbed.conclusion.without) == {"v9"}


@pytest.mark.slow
def test_rungs_get_as_many_seeds_as_they_need(ladder, tmp_path):
    found = package.ladder(
        ladder(short(ladder().read_text(), "seed = { min = 3, max = 5 }")), out=tmp_path, device="cpu"
    )
    assert found.exit == 0
    for result in found.climbed.results:
        losses = result.losses()
        assert losses
        assert 3 <= losses.table.losses.shape[1] <= 5
    assert found.climbed.conclusion


@pytest.mark.slow
def test_a_ladder_is_emitted_rung_by_rung_and_its_jobs_train_it(ladder, tmp_path, ratrain):
    words = ("--ladder", ladder(), "--out", tmp_path / "runs", "--device", "cpu", "--no-costs")
    code, said, error = ratrain(*words, "--emit", "shell", "--jobs", 2)
    assert code == 0, error
    assert said.count("runs are to be trained") == 4
    for rung in (1, 2, 3, 4):
        script = (tmp_path / "runs" / "studies" / f"steps-rung{rung}" / "jobs" / "submit.sh").read_text()
        assert f"--rung {rung} " in script
        assert "--ladder" in script
    code, said, error = ratrain(*words[:-1], "--rung", 1, "--run", 1)
    assert code == 0, error
    assert "run 1, v0 s1: done" in said


def test_a_dry_run_prints_the_rungs_and_writes_nothing(ladder, tmp_path, ratrain):
    code, said, _ = ratrain("--ladder", ladder(), "--out", tmp_path / "runs", "--device", "cpu", "--dry-run")
    assert code == 0
    assert "learning rates the same" in said
    assert "no position, and no gradient, sees a later token" in said
    code, said, _ = ratrain("--ladder", ladder(), "--out", tmp_path / "runs", "--device", "cpu", "--dry-run", "--json")
    assert code == 0
    assert [rung["n_embd"] for rung in json.loads(said)["rungs"]] == [16, 32, 48, 64]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rung", "5"], 2, "rungs 1 to 4"),
        (["--run", "1"], 2, "expected --rung K beside it"),
        (["--set", "model.n_embd=64"], 2, "the rungs set it"),
        (["--only", "v77"], 2, "no such arm"),
        (["--at", "-1"], 2, "--at"),
        (["--at", "1e20"], 2, "gains are predicted from"),
        (["--at", "1e9", "--dry-run"], 2, "expected no --rung"),
        (["--rung", "1", "--fresh"], 2, "moves the whole ladder aside"),
        (["--seeds", "1,2"], 2, "a rung needs 3 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(ladder, tmp_path, ratrain, words, code, message):
    got, _, error = ratrain("--ladder", ladder(), "--out", tmp_path / "runs", *words)
    assert got == code
    assert message in error


def test_other_commands_name_the_right_one(ladder, ratrain):
    code, _, error = ratrain("--ablate", ladder())
    assert code == 78
    assert "run it with --ladder" in error
    code, _, error = ratrain(ladder())
    assert code == 78
    assert "ratrain --ladder" in error
    code, _, error = ratrain("--ladder", "ablation_kv")
    assert code == 66
    assert "no such ladder" in error


def test_a_plan_tells_hours_and_the_smallest_gains(ladder, ratrain):
    text = (
        ladder().read_text().replace("seeds = [4, 3, 3, 3]", "seeds = [4, 3, 3, 3]\nnoise = [0.02, 0.02, 0.01, 0.01]")
    )
    code, said, _ = ratrain("plan", ladder(text), "--json")
    assert code == 0
    found = json.loads(said)
    assert [rung["runs"] for rung in found["rungs"]] == [20, 15, 15, 15]
    assert found["rungs"][1]["detectable"] == pytest.approx(2 * found["rungs"][2]["detectable"], rel=0.01)
    assert 0 < found["detectable_per_decade"] < found["rungs"][0]["detectable"]
