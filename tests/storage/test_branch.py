"""A run that begins at a checkpoint of another, and one that is given a longer budget."""

from __future__ import annotations

import json

import pytest
import torch

from ratrain.storage.checkpoint import listed, load, load_newest

KEYS = ("compile.scope=off", "log.every=1", "eval.windows=2", "checkpoint.every=2", "checkpoint.keep=9")
CONSTANT = ("schedule.kind=constant", "schedule.warmup={ steps = 2 }")


@pytest.fixture
def trains(ratrain, tmp_path):
    """Runs v1 with overrides and flags below tmp_path: (code, stderr)."""

    def trains(*words):
        flags = [word for key in words if not key.startswith("-") for word in ("--set", key)]
        rest = [part for word in words if word.startswith("-") for part in word.split(" ")]
        code, _, err = ratrain(
            *("v1", "--scale", "tiny", "--device", "cpu", "--out", tmp_path, "--json"),
            *(word for key in KEYS for word in ("--set", key)),
            *flags,
            *rest,
        )
        return code, err

    return trains


def only(tmp_path, pattern):
    (found,) = tmp_path.glob(pattern)
    return found


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def weights(folder):
    found, _, _ = load_newest(folder / "checkpoints")
    assert found
    return found.model


def test_a_wsd_branch_is_the_run_that_had_decayed_from_the_start(trains, tmp_path):
    """While neither decays they are the same run; so a branch at step 4 must end as the short run does."""
    trunk = ("schedule.kind=wsd", "schedule.warmup={ steps = 1 }")
    assert trains(*trunk, "train.budget.steps=20", "schedule.decay=0.1")[0] == 0
    long = only(tmp_path, "*/s1")
    short = (*trunk, "train.budget.steps=8", "schedule.decay=0.5")
    assert trains(*short, "--branch @last@4")[0] == 0
    branch = only(tmp_path, "*/s1-from-*-4")
    assert trains(*short)[0] == 0
    whole = only(branch.parent.parent, f"{branch.parent.name}/s1")
    assert whole != long
    one, other = weights(branch), weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [e["step"] for e in events(branch) if e["event"] == "Window"] == [5, 6, 7, 8]


def test_parentage_is_recorded(trains, tmp_path):
    assert trains("train.budget.steps=4")[0] == 0
    parent = only(tmp_path, "*/s1")
    name = str(parent.relative_to(tmp_path))
    assert trains("train.budget.steps=6", f"--branch {name}@2")[0] == 0
    branch = only(tmp_path, "*/s1-from-*")
    hashes = [load(listed(folder / "checkpoints")[0]).state["run_hash"] for folder in (parent, branch)]
    assert hashes[0] != hashes[1]
    expected = {"run": name, "run_hash": hashes[0], "step": 2}
    assert json.loads((branch / "parent.json").read_text()) == expected
    (told,) = [e for e in events(branch) if e["event"] == "Branched"]
    assert {key: told[key] for key in expected} == expected
    assert branch.name == f"s1-from-{hashes[0][:8]}-2"


def test_a_branch_goes_on_by_the_same_command_and_needs_its_parent_no_more(trains, tmp_path, monkeypatch):
    assert trains("train.budget.steps=4")[0] == 0
    assert trains("train.budget.steps=8", "--branch @last@2")[0] == 0
    branch = only(tmp_path, "*/s1-from-*")
    ended = weights(branch)
    for path in listed(branch / "checkpoints")[:2]:  # back to step 4
        path.rename(tmp_path / path.name)
    (branch / "state.json").unlink()
    assert trains("train.budget.steps=8", f"--branch {only(tmp_path, '*/s1')}@2", "--resume must")[0] == 0
    assert all(torch.equal(ended[name], tensor) for name, tensor in weights(branch).items())
    assert [e["step"] for e in events(branch) if e["event"] == "Window"] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--branch nothing@3",), 66, "nothing: no such run"),
        (("--branch @last@3",), 66, "has no checkpoint of step 3, it keeps 2, 4; checkpoint.keep keeps more"),
        (("--branch @last@4",), 78, "train.budget: ends at step 4, but the run begins at step 4 of its parent"),
        (("--branch @last@2", "model.n_layer=1"), 65, "does not fit the model: "),
    ],
)
def test_what_cannot_be_begun_with_is_told(trains, words, code, message):
    assert trains("train.budget.steps=4")[0] == 0
    found, err = trains("train.budget.steps=4", *words)
    assert (found, message in err) == (code, True), err


def test_a_longer_budget_is_the_same_run_where_the_schedule_is_constant(trains, tmp_path):
    assert trains(*CONSTANT, "train.budget.steps=4")[0] == 0
    assert trains(*CONSTANT, "train.budget.steps=8")[0] == 0
    folder = only(tmp_path, "*/s1")
    assert [e["step"] for e in events(folder) if e["event"] == "Window"] == list(range(1, 9))
    longer = weights(folder)
    assert trains(*CONSTANT, "train.budget.steps=8", "--fresh")[0] == 0
    assert all(torch.equal(longer[name], tensor) for name, tensor in weights(folder).items())


def test_a_longer_budget_is_another_run_where_the_schedule_knows_it(trains, tmp_path):
    for steps in (4, 8):
        assert trains(f"train.budget.steps={steps}")[0] == 0
    assert len(list(tmp_path.glob("*/s1"))) == 2


PRUNED = ("prune.kind=magnitude", "prune.target=0.5", "prune.every=1")


def test_a_trained_model_is_pruned_from_a_branch_on(trains, tmp_path):
    assert trains("train.budget.steps=6")[0] == 0
    code, _ = trains("train.budget.steps=12", *PRUNED, "--branch @last@6")
    assert code == 0
    branch = only(tmp_path, "*/s1-from-*-6")
    told = [event for event in events(branch) if event["event"] in ("PruningBegan", "PruningEvaluated")]
    assert [event["event"] for event in told] == ["PruningBegan", "PruningEvaluated"]
    assert sum(z for name, (z, _) in told[1]["zeros"].items() if name in told[0]["tensors"]) == told[0]["weights"] // 2


def test_a_pruned_run_is_gone_on_from_under_the_same_section(trains, tmp_path):
    span = ("prune.start={steps=1}", "prune.end={steps=4}")
    assert trains(*CONSTANT, "train.budget.steps=6", *PRUNED, *span)[0] == 0
    assert trains("schedule.kind=linear", "train.budget.steps=8", *PRUNED, *span, "--branch @last@4")[0] == 0
    end = events(only(tmp_path, "*/s1-from-*-4"))[-3:]
    (told,) = [event for event in end if event["event"] == "PruningEvaluated"]
    assert (told["reached"], told["not_zero"]) == (True, 0)


@pytest.mark.parametrize(
    ("parent", "child", "message"),
    [
        (PRUNED, (*PRUNED[:1], "prune.target=0.9"), "prune: the parent run prunes its weights by"),
        (PRUNED, (), "prune: the parent run prunes its weights by"),
        (PRUNED, ("prune.kind=movement", *PRUNED[1:]), "expected the same [prune] section"),
        (PRUNED, (*PRUNED, "prune.embedding=true"), "expected the same [prune] section"),
        (("optim.kind=adamwspam",), ("optim.kind=adamwspam", "optim.spike_window=20"), "expected the same [optim]"),
        *(
            (
                ("optim.kind=adamwprune", "prune.kind=state", "prune.score=bitter0", "prune.target=0.5"),
                ("optim.kind=adamwprune", f"optim.base={base}", "prune.kind=state", "prune.score=bitter0",
                 "prune.target=0.5"),
                "expected the same [optim] section",
            )
            for base in ("adamwspam", "adamwadv")
        ),
    ],
)  # fmt: skip
def test_a_branch_that_would_keep_other_things_is_refused(trains, parent, child, message):
    assert trains("train.budget.steps=4", *parent)[0] == 0
    code, err = trains("train.budget.steps=8", *child, "--branch @last@4")
    assert (code, err.count("\n")) == (78, 2)
    assert message in err
