"""A study as its user meets it: runs, stops, goes on, and tells what came of it."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import read_study
from ratrain.ablation.running.execute import held
from ratrain.ablation.running.pool import Began, Ended, Pool, Published
from ratrain.errors import Exit
from ratrain.events import Window
from ratrain.run.start import Launch


def losses(results):
    begun = (arm for arm in results["arms"] if any(run["status"] != "not begun" for run in arm["runs"]))
    return {arm["arm"]: [run["loss"] for run in arm["runs"]] for arm in begun}


@pytest.mark.slow
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
    arm = next(arm for arm in results["arms"] if arm["arm"] == "v9")
    assert arm["differences"] == [b - a for a, b in zip(told["v0"], told["v9"], strict=True)]
    folder = next((tmp_path / "runs" / "studies").iterdir())
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows if row["loss"]] == [*told["v0"], *told["v9"]]
    assert json.loads((folder / "results.json").read_text()) == results
    assert f"{sum(told['v9']) / 2:.4f}" in (folder / "results.md").read_text()
    assert len([link for link in (folder / "runs").iterdir() if (link / "state.json").exists()]) == 4


def test_the_metric_is_the_mean_of_the_last_evaluations(ablate, study, tmp_path):
    text = "metric.last = 2\nset.eval.every = 2\n" + study().read_text()
    results, _ = ablate(study(text), "--only", "v9", "--seeds", "1,2")
    for arm in (arm for arm in results["arms"] if arm["arm"] in ("v0", "v9")):
        for run in arm["runs"]:
            lines = (tmp_path / "runs" / run["folder"] / "events.jsonl").read_text().splitlines()
            told = [event["loss"] for event in map(json.loads, lines) if event["event"] == "Evaluated"]
            assert len(told) == 3
            assert run["loss"] == pytest.approx(sum(told[-2:]) / 2, rel=1e-15)


def test_a_run_of_a_study_can_be_replayed(ablate, study, ratrain, tmp_path):
    ablate(study(), "--only", "v9")
    words = ("replay", "two", "--out", tmp_path / "runs", "--device", "cpu", "--json")
    code, out, err = ratrain(*words, "--arm", "v9", "--seed", 2, "--steps", 4)
    assert (code, err) == (0, "")
    assert json.loads(out)["equal"] == 4
    assert "the arms of two-tiny are" in ratrain(*words, "--arm", "v8")[2]
    assert "the seeds of two-tiny are" in ratrain(*words, "--arm", "v9", "--seed", 3)[2]


@pytest.mark.slow
def test_an_arm_with_its_verdict_runs_no_more_seeds(ablate, study):
    text = study().read_text().replace("[1, 2]", "[1, 2, 3, 4]")
    text = text.replace("[arm.kept]", "[verdict]\ndelta = 50.0\nstop = true\n\n[arm.kept]")
    results, _ = ablate(study(text))
    assert [verdict["word"] for verdict in results["conclusion"]["judgement"]["verdicts"]] == ["equivalent"] * 3
    assert results["conclusion"]["judgement"]["looks"] == [3]
    assert [[run["status"] for run in arm["runs"]] for arm in results["arms"]] == [["done"] * 3 + ["not begun"]] * 4


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
    arms = {arm["arm"]: arm for arm in results["arms"]}
    assert [arms[name]["runs"][0]["status"] for name in ("v0", "wild", "v9")] == ["done", "diverged", "not begun"]
    assert arms["wild"]["differences"] == []
    assert "wild s1: diverged" in err


def test_the_recorded_command_runs_the_same_study(ablate, study, ratrain, tmp_path):
    text = study().read_text().replace('scale = "tiny"', 'scale = "study"')
    ablate(study(text), "--only", "v9", "--seeds", "2,1", "--set", "schedule.lr=2e-3", "--scale", "tiny")
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    name, *words = shlex.split(read_study(folder).now.command)
    assert name == "ratrain"
    code, _, err = ratrain(*words, "--only", "v9", "--out", tmp_path / "runs", "--device", "cpu", "--no-costs")
    assert (code, err) == (0, "")  # nothing is trained again


def test_other_code_is_refused(ablate, study, tmp_path):
    ablate(study(), "--only", "v9", "--seeds", "1")
    file = next((tmp_path / "runs").glob("v9-*/s1/code.json"))
    digests = json.loads(file.read_text())
    file.write_text(json.dumps(dict.fromkeys(digests, "0" * 64)))
    _, err = ablate(study(), "--only", "v9", "--seeds", "1", code=Exit.BAD_MANIFEST)
    assert "changed since" in err
    ablate(study(), "--only", "v9", "--seeds", "1", "--accept-code-change")


# what is refused before anything is trained


@pytest.fixture
def refused(ablate, study, tmp_path):
    """What is said of a study with more arms: the baseline with patches of the user's own, by kind."""

    def refused(*flags, **codes):
        (tmp_path / "patches").mkdir()
        text = study().read_text()
        for kind, code in codes.items():
            (tmp_path / "patches" / f"{kind}.py").write_text(code)
            (tmp_path / f"{kind}.toml").write_text(f'id = "{kind}"\nextends = "gpt2.toml"\n[patch.{kind}]\n')
            text += f"\n[arm.{kind}]\nmanifest = '{tmp_path / f'{kind}.toml'}'\n"
        _, err = ablate(study(text), *flags, code=Exit.BAD_MANIFEST)
        assert not list((tmp_path / "runs").glob("*/*"))  # no run, and no folder of the study
        return err

    return refused


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_an_arm_that_sees_the_future_is_caught_before_any_training(refused, flags):
    err = refused(*flags, peek=PEEK)
    assert "study.toml: peek: sees the future (training, 8 tokens: changing those from" in err


PEEK = """
import torch
from torch import nn
from ratrain.registry import Patch, register

@register("peek")
class Peek(Patch):
    target: str = "blocks.*.attn.blend"

    def build(self, old, spec):
        return Blend()

class Blend(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.s.fill_(1.0)

    def forward(self, y, v, x):  # [B, H, T, D]
        return y + 0.01 * self.s * v.mean(2, keepdim=True)
"""

IDLE = """
import torch
from torch import nn
from ratrain.registry import Patch, register

@register("idle")
class Idle(Patch):
    target: str = "blocks.*.attn.blend"
    strength: float = 0.5

    def build(self, old, spec):
        return Blend(self.strength)

class Blend(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength
        self.own = nn.Parameter(torch.empty(3))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.own.fill_(self.strength)
        self.s.fill_(1.0)

    def forward(self, y, v, x):
        return y + 0 * self.s * self.own.sum()
"""


def test_an_arm_that_is_the_baseline_in_disguise_is_caught_before_any_training(refused):
    err = refused(idle=IDLE)
    assert "study.toml: idle: computes and trains the same as v0; take one out" in err


def test_two_arms_that_differ_in_the_names_of_their_parameters_are_caught_before_any_training(refused):
    used = IDLE.replace("y + 0 * self.s * self.own.sum()", "y * (1 + self.s * self.own.sum())")
    other = used.replace("idle", "other").replace("self.own", "self.gate_of_mine")
    assert "study.toml: other: computes and trains the same as idle" in refused(idle=used, other=other)


REDRAWN = """
from ratrain.registry import Patch, register

@register("redrawn")
class Redrawn(Patch):
    target: str = "blocks.*.attn"

    def build(self, old, spec):
        old.proj.std = 0.5
        return old
"""


def test_an_arm_that_draws_shared_weights_anew_is_caught_before_any_training(refused):
    err = refused(redrawn=REDRAWN)
    assert "study.toml: redrawn: begins with other values than v0 in blocks.0.attn.proj.weight and 1 more" in err


# the plan is fixed before the first step


@pytest.mark.slow
def test_another_plan_is_refused_and_an_addition_is_exploratory(ablate, study):
    ablate(study(), "--only", "v9")
    text = study().read_text()
    _, err = ablate(study(text), "--seeds", "1,3", code=Exit.BAD_MANIFEST)
    assert (
        "two-tiny has another plan on record: no longer the first seeds 2, new seeds 3; --fresh moves the study" in err
    )
    _, err = ablate(study(text + "\n[verdict]\nalpha = 0.2\n"), "--amend", code=Exit.BAD_MANIFEST)
    assert "has another plan on record: another verdict (alpha); " in err
    more = text + "\n[arm.late]\nmanifest = 'v8'\n"
    _, err = ablate(study(more), "--only", "late", code=Exit.BAD_MANIFEST)
    assert "new arms late; --amend adds it, labelled exploratory" in err
    results, _ = ablate(study(more), "--only", "late", "--amend")
    assert "exploratory: added after the study had begun: late" in results["conclusion"]["warnings"]
    assert losses(results)["late"]


@pytest.mark.slow
def test_a_study_begun_anew_trains_anew(ablate, study, tmp_path):
    first, _ = ablate(study(), "--only", "v9", "--seeds", "1")
    again, err = ablate(study(), "--only", "v9", "--seeds", "1,2", "--fresh")
    assert "[4/4]" in err
    assert all("optimizer.safetensors" not in files(run) for run in runs(tmp_path) if ".old-" not in run.name)
    assert losses(again)["v9"][0] == losses(first)["v9"][0]
    assert sorted(path.name for path in (tmp_path / "runs" / "studies").iterdir()) == ["two-tiny", "two-tiny.old-1"]


def test_a_second_process_is_refused(ablate, study, tmp_path):
    with held(tmp_path / "runs" / "studies" / "two-tiny"):
        _, err = ablate(study(), code=Exit.CANNOT_CREATE)
    assert "another process works on this study" in err


# disk


def test_finished_runs_keep_their_last_weights_and_those_of_others_keep_what_they_have(
    ablate, study, ratrain, tmp_path
):
    words = ["--set", "compile.scope=off", "--set", "train.budget.steps=6", "--set", "log.every=2"]
    assert ratrain("v9", "--scale", "tiny", "--out", tmp_path / "runs", "--json", *words)[0] == 0
    ablate(study(), "--only", "v9")
    kept = {str(run.relative_to(tmp_path / "runs")).partition("-")[0] + run.name: files(run) for run in runs(tmp_path)}
    thin = ["SHA256SUMS", "model.safetensors", "state.json"]
    assert kept == {"v0s1": thin, "v0s2": thin, "v9s2": thin, "v9s1": sorted([*thin, "optimizer.safetensors"])}
    run = next(run for run in runs(tmp_path) if run.parent.name.startswith("v0"))
    assert ratrain("sample", run, "--tokens", "3")[0] == 0
    text = "keep = 'checkpoints'\n" + study().read_text()
    ablate(study(text), "--only", "kept*", "--seeds", "1,2")
    assert all("optimizer.safetensors" in files(run) for run in runs(tmp_path) if run.parent.name.startswith("v19"))


def runs(tmp_path):
    return sorted((tmp_path / "runs").glob("*-tiny-*/s*"))


def files(run):
    return sorted(file.name for file in run.glob("checkpoints/step-*/*"))


# tuning


TUNED = """
id = "tuned"
scale = "tiny"
seed.init = [1, 2, 3]
verdict.delta = 1.0
set.compile.scope = "off"
set.train.budget = { steps = 6 }
set.log.every = 2

[arm.late]
manifest = "v0"
set.schedule.warmup.fraction = 0.5

[tune]
grid.schedule.lr = [1e-4, 3e-3]
seed.init = [11, 12]
"""


@pytest.mark.slow
def test_every_arm_is_tuned_and_judged_at_its_own_best_point(ablate, study, tmp_path):
    results, err = ablate(study(TUNED))
    tuned = results["conclusion"]["tuned"]
    assert tuned["best"] == {name: {"schedule.lr": 0.003} for name in ("v0", "late")}
    for arm, points in tuned["losses"].items():
        rows = [row for row in results["arms"] if row["arm"].startswith(f"{arm} tuning")]
        means = [sum(run["loss"] for run in row["runs"]) / 2 for row in rows]
        assert list(points.values()) == pytest.approx(means)
        assert min(means) == points["schedule.lr = 0.003"]
    assert [verdict["word"] for verdict in tuned["judgement"]["verdicts"]] == ["equivalent"]
    assert "[14/14]" in err  # 8 to tune, 6 to test; at its best point each arm is what it was, and not run again
    again, err = ablate(study(TUNED))
    assert (again, err) == (results, "")


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


@pytest.mark.slow
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
    (task,) = [task for task in make_plan(study(), seeds=[(1, 1)]).tasks() if task.arm == "v9"]
    seen = []

    def tell(said):
        seen.append(type(said))
        if isinstance(said, Published) and seen.count(Published) == 1:
            os.kill(pool._busy[0].process.pid, signal.SIGKILL)
        if isinstance(said, Ended):
            assert said.code == Exit.DONE, said.reason

    pool = Pool(Launch(tmp_path / "runs"), ["cpu"], tell)
    pool.run([task])
    assert seen.count(Began) == 2
    assert seen[-1] is Ended


def test_runs_of_one_graph_wait_until_the_first_has_compiled_it(study, tmp_path):
    tasks = list(make_plan(study(), seeds=[(1, 1), (2, 2), (3, 3)]).tasks())
    chosen = [task for task in tasks if task.arm == "v0"] + [task for task in tasks if task.arm == "v9"][:1]
    compiling, told = set(), []

    def tell(said):
        if isinstance(said, Began):
            assert said.task.graphs not in compiling
            told.append(f"{said.task.arm} {said.task.init}")
            compiling.update({said.task.graphs} if said.task.init == 1 else ())
        if isinstance(said, Published) and isinstance(said.event, Window):
            compiling.discard(said.task.graphs)

    Pool(Launch(tmp_path / "runs"), ["cpu", "cpu"], tell).run(chosen)
    assert told[:2] == ["v0 1", "v9 1"]
    assert sorted(told) == ["v0 1", "v0 2", "v0 3", "v9 1"]


@pytest.mark.slow
def test_as_many_runs_stand_side_by_side_as_have_the_memory(study, ratrain, tmp_path, monkeypatch):
    words = ("--ablate", study(), "--out", tmp_path / "runs", "--device", "cpu", "--dry-run", "--json")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10 * 2**30))
    lanes = [json.loads(ratrain(*words, *more)[1])["needs"]["lanes"] for more in ((), ("--memory", "3"))]
    assert lanes == [8, 3]
    code, _, err = ratrain(*words, "--memory", "11")
    assert code == Exit.OUT_OF_MEMORY
    assert "--memory 11: this machine has 10.0 GiB free, less than one run takes" in err
    assert "expected a number of GiB above 0, got 'much'" in ratrain(*words, "--memory", "much")[2]


@pytest.mark.slow
def test_costs_of_steps_are_measured_alone_and_once(study, ratrain, tmp_path):
    words = (
        "--ablate",
        study(),
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--json",
        "--only",
        "kept*",
        "--seeds",
        "1",
    )
    results = json.loads(ratrain(*words)[1])
    costs = results["costs"]
    assert set(costs) == {"v0", "kept keep=0.5", "kept keep=0.25"}
    assert costs["v0"]["interval"][0] < 1.05
    assert costs["v0"]["interval"][1] > 0.95  # the baseline beside itself
    assert costs["kept keep=0.5"]["interval"][0] > 1.3  # its queries go in blocks
    assert json.loads(ratrain(*words)[1])["costs"] == costs


def test_arms_that_get_equal_time_train_fewer_tokens_and_go_on_with_those(study, ratrain, tmp_path):
    text = study().read_text().replace('arms = ["v9"]', 'match = "seconds"').replace("steps = 6", "steps = 60")
    words = (
        "--ablate",
        study(text),
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--json",
        "--no-costs",
        "--seeds",
        "1",
    )
    first = json.loads(ratrain(*words)[1])
    tokens = {arm["arm"]: arm["tokens"] for arm in first["arms"]}
    assert tokens["kept keep=0.5"] < 0.8 * tokens["v0"]
    code, out, err = ratrain(*words)  # not measured again, or it would be another plan
    assert (code, err) == (0, "")
    assert json.loads(out) == first


def wait_for(ready, running):
    """Until `ready()`, which is asked twenty times a second; the study must not end meanwhile."""
    while not ready():
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.05)
