"""One command trains every manifest that it is given."""

import json

from ratrain.run import smoke


def test_each_is_trained_to_its_end_and_thrown_away(ratrain, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = ratrain("smoke", "v0", "v12", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["id"], row["steps"], row["recompiles"]) for row in rows] == [("v0", 100, 0), ("v12", 100, 0)]
    assert [row["activated"] for row in rows] == [{}, {"unified_ra": 75}]
    assert all(row["validation_loss"] < row["first_loss"] for row in rows)
    assert not list((tmp_path / "here").iterdir())


def test_what_fails_is_told_and_the_others_are_trained(ratrain):
    code, out, err = ratrain("smoke", "v0", "v99", "v1", "--set", "train.budget.steps=20")
    assert code == 66
    assert [line.split()[0] for line in out.splitlines()] == ["id", "v0", "v1"]
    assert "v99" in err and "1 of 3 failed" in err


def test_a_model_that_does_not_learn_is_a_failure(ratrain):
    code, _, err = ratrain("smoke", "v0", "--set", "train.budget.steps=5", "--set", "schedule.lr=1e-12")
    assert code == 76
    assert "no lower than the first training loss" in err


def test_each_is_resumed_where_its_mechanisms_are_switched_on(ratrain):
    code, out, _ = ratrain("smoke", "v1", "ratio16", "l7", "r3", "s1_as_run", "ratio8", "--resume", "--json")
    rows = {row["id"]: row for row in map(json.loads, out.splitlines())}
    assert code == 0
    assert all(len(row["losses"]) == 2 for row in rows.values())
    switched = {id: row["activated"] for id, row in rows.items()}
    assert switched == {
        "v1": ["unified_ra"],
        "ratio16": ["ra_mla"],
        "l7": ["lens"],
        "r3": ["rwr"],
        "s1_as_run": ["lens"],
        "ratio8": [],  # latent attention is of another structure, on or off
    }


def test_a_restart_that_changes_something_is_a_failure(ratrain, monkeypatch):
    restored = smoke.Engine.run

    def run(engine, **options):
        ended = restored(engine, **options)
        if engine.setup.checkpoints.name == "parted":
            engine.model.wte.weight.data[0, 0] += 1e-3
        return ended

    monkeypatch.setattr(smoke.Engine, "run", run)
    code, _, err = ratrain("smoke", "v1", "--resume")
    assert code == 76
    assert "a resumed run differs from an uninterrupted one: wte.weight" in err
