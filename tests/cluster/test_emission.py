"""A study that is emitted as jobs ends with the results of one that runs in processes of one machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ratrain.ablation.manifest import find_ablation
from ratrain.ablation.plan import make_plan
from ratrain.ablation.running.execute import begun
from ratrain.ablation.running.units import runs_of
from ratrain.errors import Exit
from tests.cluster.studies import ADAPTIVE, FIXED, results_of, words_of


@pytest.fixture
def file(tmp_path):
    def file(text=FIXED):
        (tmp_path / "study.toml").write_text(text)
        return tmp_path / "study.toml"

    return file


@pytest.mark.slow
@pytest.mark.parametrize("text", [FIXED, ADAPTIVE])
def test_the_emitted_rounds_end_with_the_results_of_one_machine(ratrain, file, tmp_path, text):
    code, _, err = ratrain(*words_of(file(text), tmp_path / "one"), "--jobs", 2)
    assert code == 0, err
    code, out, err = ratrain(*words_of(file(text), tmp_path / "many"), "--emit", "shell", "--jobs", 2)
    assert code == 0, err
    script = Path(out.split("bash ")[1].strip())
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not script.exists()  # nothing is left
    assert results_of(tmp_path / "many") == results_of(tmp_path / "one")


def test_a_run_is_one_command_that_may_be_given_again(ratrain, file, tmp_path):
    words = words_of(file(), tmp_path / "runs")
    for _ in range(2):
        code, out, _ = ratrain(*words, "--run", 2)
        assert code == 0
        assert "run 2, v9 s1: done" in out
    trained = list((tmp_path / "runs").glob("*/s*/summary.json"))
    assert [json.loads((path.parent / "state.json").read_text())["status"] for path in trained] == ["done"]
    code, _, err = ratrain(*words, "--run", 99)
    assert code == 2
    assert "has runs 1 to 9" in err


def test_numbers_stay_and_every_run_has_one(file, tmp_path):
    plan = make_plan(find_ablation(str(file())))
    runs = runs_of(plan, begun(plan, tmp_path))
    assert len(runs) == len({run.folder for run in runs}) == 9
    assert [run.folder for run in runs] == [run.folder for run in runs_of(plan, begun(plan, tmp_path))]


@pytest.mark.parametrize(
    ("device", "run", "look"), [("auto", "--gpus=2", "--gpus=1"), ("cpu", "--cpus-per-task=8", "--cpus-per-task=1")]
)
def test_jobs_of_slurm_say_what_was_asked_for(ratrain, file, tmp_path, device, run, look):
    options = [
        "--device",
        device,
        "--gpus-per-run",
        2,
        "--per-gpu",
        4,
        "--jobs",
        8,
        "--sbatch=--time=1:00:00",
        "--sbatch=--comment=a b",
    ]
    code, out, err = ratrain(*words_of(file(), tmp_path / "runs"), "--emit", "slurm", *options)
    assert code == 0, err
    assert out.startswith("9 runs are to be trained: bash ")
    jobs = tmp_path / "runs" / "studies" / "fixed-tiny" / "jobs"
    assert (jobs / "round.txt").read_text() == "1 2 3 4\n5 6 7 8\n9\n"
    job, after, submit = ((jobs / name).read_text() for name in ("run.sbatch", "look.sbatch", "submit.sh"))
    for line in (run, "--time=1:00:00", "--comment='a b'", "--requeue", "--signal=B:TERM@120"):
        assert f"#SBATCH {line}\n" in job
    assert ' --gpus-per-run=2 --run "$run" &' in job
    assert "--array=0-2%8" in submit
    (line,) = (line for line in after.splitlines() if "--next-round" in line)
    again = shlex.split(line.removesuffix(" || exit"))
    assert again[1:3] == ["-m", "ratrain"]
    code, out, err = ratrain(*again[3:])  # what the job asks is what was asked for
    assert (code, out.partition(":")[0]) == (0, "9 runs are to be trained"), err
    assert [(jobs / name).read_text() for name in ("run.sbatch", "look.sbatch", "submit.sh")] == [job, after, submit]
    assert f"#SBATCH {look}\n" in after
    for script in (job, after, submit):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_run_that_never_ends_is_given_up_with_its_code(ratrain, file, tmp_path):
    words = (*words_of(file(), tmp_path / "runs"), "--emit", "shell")
    for _ in range(4):  # by hand as often as one likes
        assert ratrain(*words)[1].startswith("9 runs are to be trained")
    for _ in range(2):
        assert ratrain(*words, "--next-round")[1].startswith("9 runs are to be trained")
    code, _, err = ratrain(*words, "--next-round")
    assert code == Exit.GAVE_UP
    assert err.count("given up after 3 rounds, exit code 70") == 9
    assert not (tmp_path / "runs" / "studies" / "fixed-tiny" / "jobs" / "submit.sh").exists()
    assert ratrain(*words)[1].startswith("9 runs are to be trained")


def test_arms_that_are_asked_for_stay_so_and_a_fresh_study_trains_anew(ratrain, file, tmp_path):
    words = words_of(file(), tmp_path / "runs")
    assert ratrain(*words, "--run", 1)[0] == 0
    code, out, err = ratrain(*words, "--emit", "shell", "--only", "v9", "--json")
    assert (code, json.loads(out)["runs"]) == (0, 5), err
    assert "--only=v9" in Path(json.loads(out)["script"]).read_text()
    code, out, err = ratrain(*words, "--emit", "shell", "--fresh", "--json")
    assert (code, json.loads(out)["runs"]) == (0, 9), err
    assert [path.name for path in (tmp_path / "runs").glob("v0-*/*")] == ["s1.old-1"]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--run", 1, "--emit", "shell"), "--run and --emit: expected one of them"),
        (("--run", 1, "--fresh"), "expected no --fresh"),
        (("--run", 1, "--only", "v9"), "expected no --only"),
        (("--per-gpu", 2), "--per-gpu: expected --emit beside it"),
        (("--sbatch=--time=1",), "--sbatch: expected --emit beside it"),
        (("--emit", "shell", "--address", "auto"), "--address: expected --pool beside it"),
        (("--pool", "ray", "--gpus-per-run", 2), "a run takes one GPU"),
        (("--gpus-per-run", 2), "--gpus-per-run: expected --run or --emit or --pool beside it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(ratrain, file, tmp_path, words, wrong):
    code, _, err = ratrain(*words_of(file(), tmp_path / "runs"), *words)
    assert (code, err.count("\n")) == (2, 1)
    assert wrong in err
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_command_that_installs_it_is_told(ratrain, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # its import fails
    code, _, err = ratrain(*words_of(file(), tmp_path / "runs"), "--pool", "ray")
    assert code == Exit.UNAVAILABLE
    assert "pip install 'ratrain[ray]'" in err
