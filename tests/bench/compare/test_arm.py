"""A worker takes steps when it is told to, and says why where it cannot."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from bench.compare.arm import Arm, started
from bench.compare.worker import ArmError
from ratrain.profile.paired_timing import interleave

ROOT = Path(__file__).resolve().parents[3]


def test_a_worker_takes_steps_and_two_count_the_same(start):
    with start(environment={"PYTHONHASHSEED": "1"}) as one, start(environment={"PYTHONHASHSEED": "2"}) as other:
        seconds = interleave({"one": one.step, "other": other.step}, rounds=3)
        assert {name: len(of) for name, of in seconds.items()} == {"one": 3, "other": 3}
        assert all(0 < cost < 60 for of in seconds.values() for cost in of)
        told = one.counters()
        assert told == other.counters() == one.counters()
        assert told["graphs"] == told["graph_breaks"] == told["recompiles"] == told["kernels"] == 0
        assert told["peak_bytes"] < told["allocated_bytes"] and told["state_bytes"] > 0 < told["python_calls"]
    assert one._process.returncode == other._process.returncode == 0


def test_what_a_step_prints_does_not_come_between_the_answers(start):
    with start("prints") as arm:
        assert arm.step(3) > 0


def test_a_worker_that_dies_leaves_its_last_words(start):
    with start("exits", after=3) as arm, pytest.raises(ArmError) as raised:
        arm.step()
    assert str(raised.value) == "exits: the worker ended with exit code 3:\n  these are its last words"
    arm.close()  # a second time


def test_a_step_that_fails_is_told_with_the_place(start):
    with start("raises", after=3) as arm, pytest.raises(ArmError, match="exit code 1") as raised:
        arm.step()
    assert "planted.py" in str(raised.value) and str(raised.value).endswith("ValueError: a step that fails")


def test_a_tree_too_old_to_measure_is_named_without_a_traceback(tmp_path):
    (tmp_path / "ratrain").mkdir()
    (tmp_path / "ratrain/__init__.py").touch()
    old = {"arguments": {"manifest": "v9"}, "source": tmp_path}
    with pytest.raises(ArmError) as raised, started({"v9 of abc": old}):
        pass
    assert str(raised.value).startswith("v9 of abc: this tree is older than the bench can measure (")
    assert "\n" not in str(raised.value)


def test_a_worker_takes_ratrain_from_the_other_tree_and_bench_from_this_one(tmp_path):
    shutil.copytree(ROOT / "ratrain", tmp_path / "ratrain", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/__init__.py").write_text("raise ValueError('the bench of the other tree')")
    tiny = {"manifest": "v9", "scale": "tiny", "overrides": ["compile.scope=off"]}
    with Arm(arguments=tiny, source=tmp_path) as arm:
        assert arm.counters()["ops"] > 0


def test_every_arm_meets_every_place_in_a_round():
    order: list[str] = []

    def step(name):
        order.append(name)
        return 3.0

    seconds = interleave({name: partial(step, name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abccba" + "bcaacb" + "cabbac"
    assert seconds == {name: [3.0] * 3 for name in "abc"}


def test_requests_are_lines_of_json(start):
    with start("nothing") as arm:
        arm.ready()
        assert arm._process.stdin and arm._process.stdout
        arm._process.stdin.write('{"do": "step", "n": 2}\n')
        arm._process.stdin.flush()
        assert json.loads(arm._process.stdout.readline())["seconds"] > 0
