"""Guards stand beside the verdicts: their intervals, their record, and studies without any."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t

from ratrain.ablation.guards import guard_caveats, guards_of
from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import GuardedTask, planned, read_study, record_guards, refuse_other, settle
from ratrain.errors import ManifestError
from ratrain.events import Score, TaskScored

TASK = GuardedTask("word", "word", "acc", "d")


def row(name, role, parts, *, scale="mean", better=True, task=TASK):
    """A row whose run of seed s has the values parts[s] by document; None: no score."""
    runs = []
    for seed, of in enumerate(parts):
        scored = []
        if of is not None:
            value = float(np.mean(of))
            value = float(np.exp(value)) if scale == "perplexity" else value
            score = Score(value, 0.1, better, scale, tuple(map(float, of)), (1.0,) * len(of))
            scored = [TaskScored(1, "w", task.task, task.digest, "1", len(of), len(of), 0, 0, {task.metric: score})]
        runs.append(SimpleNamespace(init=seed, data=seed, status="done", log=SimpleNamespace(tasks=scored)))
    return SimpleNamespace(arm=SimpleNamespace(name=name, role=role), runs=runs)


def study(**facts):
    none = SimpleNamespace(guard=())
    return SimpleNamespace(**{"guarded": (TASK,), "reguarded": (), "now": none, "plan": none, **facts})


def test_an_interval_over_seeds_alone_is_students():
    base = np.zeros((4, 30))
    shift = np.array([0.01, 0.03, -0.02, 0.04])
    rows = [row("v0", "base", base), row("v9", "arm", base + shift[:, None])]
    (guard,) = guards_of(study(), rows)
    half = t.ppf(0.975, 3) * shift.std(ddof=1) / 2
    assert guard.effect == pytest.approx(shift.mean())
    assert guard.interval == pytest.approx((shift.mean() - half, shift.mean() + half), rel=1e-3)
    assert (guard.pairs, guard.documents) == (4, 30)


def test_an_interval_over_documents_alone_is_students():
    base, each = np.zeros((4, 40)), np.random.default_rng(0).normal(size=40)
    (guard,) = guards_of(study(), [row("v0", "base", base), row("v9", "arm", base + each)])
    half = t.ppf(0.975, 39) * each.std(ddof=1) / np.sqrt(40)
    assert guard.interval == pytest.approx((each.mean() - half, each.mean() + half), rel=2e-2)


def test_above_zero_is_better_whatever_the_metrics_direction():
    base = np.full((3, 20), 2.0) + np.array([[0.0], [0.01], [0.02]])
    worse = [row("v0", "base", base, scale="perplexity", better=False),
             row("v9", "arm", base + 0.1, scale="perplexity", better=False)]  # fmt: skip
    (guard,) = guards_of(study(), worse)
    assert guard.effect == pytest.approx(-0.1)  # of the logarithm
    assert guard.falls
    assert guard.value > guard.base
    (told,) = guard_caveats(study(), worse, [guard])
    assert told.startswith("guard: v9 falls behind on word, acc: -0.1000") and told.endswith("it changes no verdict")


def test_runs_without_a_score_are_counted_and_those_of_other_documents_are_left_out():
    base = np.zeros((3, 20))
    other = row("v9", "arm", [base[0], None, base[2] + 0.1])
    rows = [row("v0", "base", base), other]
    (guard,) = guards_of(study(), rows)
    assert (guard.pairs, guard.effect) == (2, pytest.approx(0.05))
    assert "guard: 1 of 6 finished runs have no score on word, acc" in [*guard_caveats(study(), rows, [guard])]
    assert guards_of(study(guarded=(replace(TASK, digest="e"),)), rows) == ()
    told = [*guard_caveats(study(reguarded=("word",)), rows, [])]
    assert told[0] == "guard: word changed since the study began; all runs are scored on the new one"


def test_a_study_without_guards_has_the_record_of_earlier_versions(study_file, tmp_path):
    plan = planned(make_plan(study_file("")))
    settle(plan, tmp_path / "a", checked=())
    (line,) = (tmp_path / "a" / "events.jsonl").read_text().splitlines()
    assert "guard" not in json.loads(line)
    assert read_study(tmp_path / "a").now.guard == ()
    guarded = planned(make_plan(study_file('guard = ["word.yaml"]')))
    assert guarded.hash != plan.hash
    assert [arm.recipe for arm in guarded.arms] == [arm.recipe for arm in plan.arms]
    assert [arm.folders for arm in guarded.arms] == [arm.folders for arm in plan.arms]
    with pytest.raises(ManifestError, match=r"another plan on record: new guards word\.yaml; --amend adds it"):
        refuse_other(guarded, tmp_path / "a", amend=False)
    refuse_other(guarded, tmp_path / "a", amend=True)
    settle(guarded, tmp_path / "b", checked=())
    with pytest.raises(ManifestError, match=r"no longer guards word\.yaml"):
        refuse_other(plan, tmp_path / "b", amend=True)


def test_the_record_knows_when_a_guard_has_changed(study_file, tmp_path):
    begun = settle(planned(make_plan(study_file('guard = ["word"]'))), tmp_path / "a", checked=())
    first = record_guards(begun, [TASK])
    assert (first.guarded, first.reguarded) == ((TASK,), ())
    lines = (tmp_path / "a" / "events.jsonl").read_text()
    assert record_guards(first, [TASK]).guarded == (TASK,)
    assert (tmp_path / "a" / "events.jsonl").read_text() == lines
    later = record_guards(first, [replace(TASK, digest="e")])
    assert (later.guarded[0].digest, later.reguarded) == ("e", ("word",))
    assert asdict(later.plan) == asdict(begun.plan)


def test_a_guard_is_named_once(study_file):
    with pytest.raises(ManifestError, match="guard: expected each task once"):
        make_plan(study_file('guard = ["word", "word"]'))


@pytest.fixture
def study_file(study_text, tmp_path):
    def study_file(more):
        file = tmp_path / "study.toml"
        file.write_text(f"{more}\n{study_text}")
        return file

    return study_file


@pytest.fixture
def study_text():
    return """\
id = "two"
scale = "tiny"
seed.init = [1, 2]
arms = ["v9"]
set.compile.scope = "off"
set.train.budget = { steps = 6 }
"""


def test_a_study_scores_its_runs_once_and_keeps_verdicts(study_file, ablate, ratrain, tmp_path):
    pytest.importorskip("lm_eval")
    from tests.tasks.conftest import write_tasks

    write_tasks(tmp_path / "tasks")
    file = study_file('guard = ["tasks/choice.yaml", "tasks/text.yaml:bits_per_byte"]')
    results, err = ablate(file)
    assert err.count("guards of ") == 4
    guards = results["conclusion"]["guards"]
    assert [(one["task"], one["metric"], one["arm"], one["pairs"], one["documents"]) for one in guards] == [
        ("word_choice", "acc", "v9", 2, 12), ("whole_text", "bits_per_byte", "v9", 2, 12),
    ]  # fmt: skip
    runs = {arm["arm"]: [tmp_path / "runs" / run["folder"] for run in arm["runs"]] for arm in results["arms"]}
    told = {name: [_bits(run) for run in of] for name, of in runs.items()}
    by_hand = np.mean([a - b for a, b in zip(told["v0"], told["v9"], strict=True)])
    assert guards[1]["effect"] == pytest.approx(by_hand, abs=1e-12)

    again, err = ablate(file)
    assert again == results and "guards of" not in err
    (runs["v9"][1] / "tasks.jsonl").unlink()  # as if the study was killed before its last score
    again, err = ablate(file)
    assert again == results and err.count("guards of ") == 1 and f"{runs['v9'][1].parent.name}/s2" in err

    code, out, _ = ratrain("report", "two", "--out", tmp_path / "runs")
    page = (tmp_path / "runs" / "studies" / "two-tiny" / "report.html").read_text()
    assert code == 0
    for text in (out, page):
        assert "whole_text, bits_per_byte" in text
    assert "They are no metric of the study" in page
    (tmp_path / "tasks" / "text.yaml").unlink()
    fresh = study_file('guard = ["tasks/text.yaml"]\n').read_text().replace('"two"', '"three"')
    (tmp_path / "three.toml").write_text(fresh)
    code, _, err = ratrain("--ablate", tmp_path / "three.toml", "--out", tmp_path / "runs", "--device", "cpu")
    assert (code, err.count("\n")) == (66, 1)  # refused before a run, and before the plan is on record
    assert not (tmp_path / "runs" / "studies" / "three-tiny").exists()


def _bits(run):
    lines = [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]
    return next(line["scores"]["bits_per_byte"]["value"] for line in lines if line["task"] == "whole_text")
