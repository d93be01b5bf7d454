"""Some steps of a run again: equal to what was logged, and it shows where they are not."""

from __future__ import annotations

import json
import shutil

import pytest

from ratrain.errors import Exit
from ratrain.storage.checkpoint import thin

KEYS = ("compile.scope=off", "train.budget.steps=12", "checkpoint.every=4", "log.every=2", "eval.every=0")
WORDS = [word for key in KEYS for word in ("--set", key)]


@pytest.fixture
def done(ratrain, tmp_path):
    """The folder of a finished V9 with checkpoints of steps 8 and 12."""
    code, _, err = ratrain("v9", "--scale", "tiny", "--device", "cpu", "--out", tmp_path, "--json", *WORDS)
    assert code == 0, err
    return next(tmp_path.glob("v9-*/s1"))


@pytest.fixture
def replayed(ratrain, done):
    def replayed(*words, run=done, code=0):
        got, out, err = ratrain("replay", run, "--device", "cpu", "--json", *words)
        assert got == code, err
        return json.loads(out) if out else err

    return replayed


@pytest.mark.parametrize(("begin", "steps", "compared", "weights"), [(0, 4, 4, {"4": True}), (8, 50, 4, {"12": True})])
def test_it_is_what_was_logged(replayed, begin, steps, compared, weights):
    found = replayed("--from", begin, "--steps", steps)
    assert (found["equal"], found["compared"], found["weights"]) == (compared, compared, weights)
    assert found["exact"]
    assert found["holds"]


def test_the_run_itself_is_left_as_it_was(replayed, done):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    replayed("--steps", 4)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_a_log_that_was_touched_up_is_found_out(replayed, done):
    events = done / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    window = next(line for line in lines if line["event"] == "Window")
    window["losses"][1] -= 1e-4
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = replayed("--steps", 4, code=Exit.BAD_DATA)
    assert (found["equal"], found["compared"]) == (3, 4)
    assert not found["holds"]


def test_other_weights_are_found_out(replayed, done):
    file = done / "checkpoints" / "step-00000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert replayed("--from", 8, code=Exit.BAD_DATA)["weights"] == {"12": False}


def test_weights_that_are_gone_are_compared_by_the_digest_in_the_log(replayed, done):
    shutil.rmtree(done / "checkpoints" / "step-00000008")
    thin(done / "checkpoints")
    found = replayed("--from", 0)
    assert found["weights"] == {"8": True, "12": True}
    assert found["exact"]
    assert "it has none, and 0 is the start" in replayed("--from", 12, code=66)
    events = done / "events.jsonl"
    events.write_text(events.read_text().replace('"weights": "', '"weights": "0'))
    assert replayed("--from", 0, code=Exit.BAD_DATA)["weights"] == {"8": False, "12": False}


def test_on_another_machine_a_tolerance_holds_and_no_more(replayed, done):
    file = done / "env.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cpu": "another"}))
    events = done / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    window = next(line for line in lines if line["event"] == "Window")
    for change, code in ((1e-4, 0), (0.1, Exit.BAD_DATA)):
        window["losses"][0] += change
        events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = replayed("--steps", 2, code=code)
        assert not found["exact"]
        assert found["unlike"][0].startswith("cpu another -> ")


def test_what_is_not_there_is_said(replayed, done, ratrain, tmp_path):
    assert "has no whole checkpoint of step 5; it has 8, 12, and 0 is the start" in replayed("--from", 5, code=66)
    shutil.copytree(done, done.parent / "s9")
    (done.parent / "s9" / "parent.json").write_text("{}")
    assert "branches from another run" in replayed(run=done.parent / "s9", code=2)
    assert "no such study" in ratrain("replay", "nothing", "--arm", "v9", "--out", tmp_path)[2]
