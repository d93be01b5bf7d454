"""A study as its user meets it: runs, stops, goes on, and tells what came of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import pytest

from ratrain.errors import Exit


@pytest.fixture
def ablate(ratrain, tmp_path):
    def ablate(file, *words, code=0):
        got, out, err = ratrain("--ablate", file, "--out", tmp_path / "runs", "--device", "cpu", "--json", *words)
        assert got == code, err
        return (json.loads(out) if out else None), err

    return ablate


def losses(results):
    return {arm["arm"]: [run["loss"] for run in arm["runs"]] for arm in results["arms"]}


def test_every_arm_is_trained_with_every_seed_and_as_by_hand(ablate, study, ratrain, tmp_path):
    results, err = ablate(study())
    assert {name: len(of) for name, of in losses(results).items()} == {
        "v0": 2, "v9": 2, "kept keep=0.5": 2, "kept keep=0.25": 2,
    }  # fmt: skip
    assert "[8/8]" in err
    by_hand = ["compile.scope=off", "train.budget.steps=6"]
    words = [word for key in by_hand for word in ("--set", key)]
    code, _, err = ratrain("v9", "--scale", "tiny", "--out", tmp_path / "alone", "--seed", 2, "--json", *words)
    assert code == 0, err
    state = json.loads(next((tmp_path / "alone").glob("v9-*/s2/state.json")).read_text())
    assert state["loss"] == losses(results)["v9"][1]


def test_differences_are_paired_by_seed_and_the_files_agree(ablate, study, tmp_path):
    results, _ = ablate(study(), "--only", "v9")
    told = losses(results)
    _, arm = results["arms"]
    assert arm["differences"] == [b - a for a, b in zip(told["v0"], told["v9"], strict=True)]
    folder = next((tmp_path / "runs" / "studies").iterdir())
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [*told["v0"], *told["v9"]]
    assert json.loads((folder / "results.json").read_text()) == results
    assert f"{sum(told['v9']) / 2:.4f}" in (folder / "results.md").read_text()
    assert len([link for link in (folder / "runs").iterdir() if (link / "state.json").exists()]) == 4


def test_a_run_of_a_study_can_be_replayed(ablate, study, ratrain, tmp_path):
    ablate(study(), "--only", "v9")
    words = ("replay", "two", "--out", tmp_path / "runs", "--device", "cpu", "--json")
    code, out, err = ratrain(*words, "--arm", "v9", "--seed", 2, "--steps", 4)
    assert (code, err) == (0, "")
    assert json.loads(out)["equal"] == 4
    assert "the arms of two-tiny-" in ratrain(*words, "--arm", "v8")[2]
    assert "the seeds of two-tiny-" in ratrain(*words, "--arm", "v9", "--seed", 3)[2]


def test_an_arm_with_its_verdict_runs_no_more_seeds(ablate, study):
    text = study().read_text().replace("[1, 2]", "[1, 2, 3, 4]")
    text = text.replace("[arm.kept]", "[verdict]\ndelta = 50.0\nstop = true\n\n[arm.kept]")
    results, _ = ablate(study(text), "--only", "v9")
    assert [verdict["word"] for verdict in results["conclusion"]["judgement"]["verdicts"]] == ["equivalent"]
    assert results["conclusion"]["judgement"]["looks"] == [3]
    assert [[run["status"] for run in arm["runs"]] for arm in results["arms"]] == [["done"] * 3 + ["not begun"]] * 2


def test_a_grid_is_drawn(ablate, study, tmp_path):
    ablate(study(), "--only", "kept*", "--seeds", "1")
    (figure,) = (tmp_path / "runs" / "studies").glob("*/figures/sweep.png")
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_what_is_done_is_not_run_again(ablate, study):
    first, _ = ablate(study(), "--only", "v9")
    again, err = ablate(study(), "--only", "v9")
    assert again == first
    assert err == ""


def test_a_diverged_arm_is_told_as_such_and_the_others_go_on(ablate, study):
    text = study().read_text() + "\n[arm.wild]\nmanifest = 'v9'\nset.schedule.lr = 1e30\nset.train.max_skips = 0\n"
    results, err = ablate(study(text), "--only", "wild", "--seeds", "1")
    assert [run["status"] for arm in results["arms"] for run in arm["runs"]] == ["done", "diverged"]
    assert results["arms"][1]["differences"] == []
    assert "wild s1: diverged" in err


def test_other_code_is_refused(ablate, study, tmp_path):
    ablate(study(), "--only", "v9", "--seeds", "1")
    file = next((tmp_path / "runs").glob("v9-*/s1/code.json"))
    digests = json.loads(file.read_text())
    file.write_text(json.dumps(dict.fromkeys(digests, "0" * 64)))
    _, err = ablate(study(), "--only", "v9", "--seeds", "1", code=Exit.BAD_MANIFEST)
    assert "changed since" in err
    ablate(study(), "--only", "v9", "--seeds", "1", "--accept-code-change")


SLOW = [
    "--set",
    "train.budget.steps=400",
    "--set",
    "checkpoint.every=20",
    "--seeds",
    "1",
    "--only",
    "v9",
    "--jobs",
    "2",
]


def test_a_study_that_is_stopped_or_killed_goes_on_to_the_same_losses(ablate, study, tmp_path):
    unbroken, _ = ablate(study(), *SLOW)
    os.rename(tmp_path / "runs", tmp_path / "unbroken")
    for number, code in ((signal.SIGTERM, Exit.PREEMPTED), (signal.SIGKILL, -signal.SIGKILL)):
        command = [sys.executable, "-m", "ratrain", "--ablate", study(), "--out", tmp_path / "runs", "--device", "cpu"]
        running = subprocess.Popen([*command, *SLOW], start_new_session=True, stdout=subprocess.DEVNULL)
        wait_for(lambda: list((tmp_path / "runs").glob("*/s1/checkpoints/step-*")), running)
        os.killpg(running.pid, number)
        assert running.wait(60) == code
    assert not [1 for state in (tmp_path / "runs").glob("*/s1/state.json") if '"done"' in state.read_text()]
    resumed, _ = ablate(study(), *SLOW)
    assert losses(resumed) == losses(unbroken)


def test_a_run_that_dies_is_begun_again(study, tmp_path, monkeypatch):
    from ratrain.ablation.plan import make_plan
    from ratrain.ablation.pool import Began, Ended, Pool, Told
    from ratrain.engine.launch import Launch

    (task,) = [task for task in make_plan(study(), seeds=[(1, 1)]).tasks() if task.arm == "v9"]
    seen = []

    def tell(said):
        seen.append(type(said))
        if isinstance(said, Told) and seen.count(Told) == 1:
            os.kill(pool._busy[0].process.pid, signal.SIGKILL)
        if isinstance(said, Ended):
            assert said.code == Exit.DONE, said.reason

    pool = Pool(Launch(tmp_path / "runs"), ["cpu"], tell)
    pool.run([task])
    assert seen.count(Began) == 2
    assert seen[-1] is Ended


def wait_for(ready, running):
    """Until `ready()`, which is asked twenty times a second; the study must not end meanwhile."""
    while not ready():
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.05)
