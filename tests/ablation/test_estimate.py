"""What a study will take: each arm as slow as its FLOPs, evaluations and starts counted, finished runs left out."""

from __future__ import annotations

import json
import math

import pytest

from ratrain.ablation.estimate import Probe, estimate
from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import planned
from ratrain.config.resolve import tokens_per_step
from ratrain.statistics.power import more_seeds


def test_runs_share_the_lanes_and_wide_arms_take_longer(study):
    text = study().read_text() + "\n[arm.wide]\nmanifest = 'v0'\nset.model.mlp_ratio = 8\n"
    plan = make_plan(study(text), overrides=["eval.every=2"], seeds=[(1, 1)], only=["wide"])
    arms = {arm.name: arm for arm in plan.arms}
    tokens = 6 * tokens_per_step(plan.base.manifest)
    found = Probe(start=10.0, evaluation=2.0, rate=float(tokens), checkpoint=1000)  # a run of the baseline takes 1 s
    base, wide = arms["v0"].built, arms["wide"].built
    slower = wide.train_flops_per_token / base.train_flops_per_token
    one = estimate(plan, plan.tasks(), found, lanes=1)
    assert one.seconds == pytest.approx(2 * (10 + 3 * 2) + 1 + slower)  # six steps, evaluated every second one
    assert estimate(plan, plan.tasks(), found, lanes=2).seconds == pytest.approx(one.seconds / 2)
    weights = 1 / 3  # two moments of each weight go
    assert one.disk == pytest.approx(1000 * weights * (1 + wide.parameters / base.parameters), abs=1)
    whole = make_plan(study("keep = 'checkpoints'\n" + text), overrides=["eval.every=2"], seeds=[(1, 1)], only=["wide"])
    keep = plan.base.manifest.checkpoint.keep
    kept = estimate(whole, whole.tasks(), found, lanes=1)
    assert kept.disk == pytest.approx(1000 * keep * (1 + wide.parameters / base.parameters), abs=1)


def test_a_budget_in_seconds_is_its_own_estimate(study):
    plan = make_plan(study(), overrides=["train.budget={ seconds = 30 }"], seeds=[(1, 1)], only=["v9"])
    found = Probe(start=0.0, evaluation=0.0, rate=1.0, checkpoint=0)
    assert estimate(plan, plan.tasks(), found, lanes=1).seconds == 60


def test_a_dry_run_tells_what_is_left_and_writes_nothing(study, ratrain, tmp_path):
    words = ("--ablate", study(), "--out", tmp_path / "runs", "--device", "cpu", "--seeds", "1", "--only", "v9")
    code, out, err = ratrain(*words, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["needs"]["runs"] == 2
    assert not (tmp_path / "runs").exists()
    assert ratrain(*words, "--json")[0] == 0
    assert "all runs are done" in ratrain(*words, "--dry-run")[1]


def test_a_dry_run_foretells_what_so_many_seeds_find(study, ratrain, tmp_path):
    text = study().read_text()
    words = ("--out", tmp_path / "runs", "--device", "cpu", "--dry-run")

    def told(more, *others):
        code, out, err = ratrain("--ablate", study(text + more), *words, *others)
        assert (code, err) == (0, "")
        return out

    unknown, known = told(""), told("\n[verdict]\nnoise = 0.02\n")
    unit = more_seeds(1.0, arms=3)
    assert f"3: {unit[3]:.4f} sd" in unknown
    assert "not measured yet" in unknown
    assert f"3: {0.02 * math.sqrt(2) * unit[3]:.4f}, " in known  # a difference of two runs
    assert "from verdict.noise, the stated noise" in known
    assert "not measured yet" in told(
        "\n[verdict]\nnoise = 0.02\n", "--scale", "study", "--set", "train.budget.steps=6"
    )
    assert f"plan {planned(make_plan(study(text))).hash[:8]}" in unknown
