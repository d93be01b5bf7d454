"""A step that saw the future says so wherever its losses are shown."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from ratrain.ablation.caveats import said
from ratrain.events import NOT_CAUSAL
from ratrain.run.check import check

WHY = "patch.rwr is not causal: edges, walk and read-out reach later tokens"


@pytest.mark.parametrize(
    ("id", "leaks"), [("r1_as_run", True), ("r3_as_run", True), ("r1", False), ("l3_as_run", False)]
)
def test_check_says_which_patch_leaks(tiny, ratrain, id, leaks):
    assert bool(check(tiny(id)).leaks) == leaks
    _, out, _ = ratrain("check", id)
    assert ("rwr x 4 (NOT CAUSAL)" in out) == leaks


def test_the_console_the_log_and_the_report_say_it(ratrain, tmp_path):
    keys = ("--set", "train.budget.steps=4", "--set", "eval.windows=2", "--out", tmp_path)
    code, out, _ = ratrain("r2_as_run", "--scale", "tiny", *keys, "--json")
    assert code == 0
    told = [event for event in map(json.loads, out.splitlines()) if event["event"] == "Notice"]
    assert any(event["level"] == "warning" and WHY in event["message"] for event in told)
    (run,) = tmp_path.glob("*/s1")
    _, out, _ = ratrain("report", run)
    assert WHY in out
    assert WHY in (run / "report.html").read_text()


def test_a_study_takes_it_up_as_a_caveat():
    log = SimpleNamespace(warnings=[f"{WHY}: mind", "continues with changed code: a.py"])
    rows: Any = [SimpleNamespace(arm=SimpleNamespace(name="r1_as_run"), runs=[SimpleNamespace(log=log)] * 2)]
    assert list(said(rows, NOT_CAUSAL, "not causal")) == [f"not causal: r1_as_run {WHY}: mind"]


def test_a_study_starts_with_an_arm_that_says_it(ratrain, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text('id = "leaky"\nbase = "v0"\nscale = "tiny"\nseed.init = [1]\narms = ["r1_as_run"]\n')
    code, _, err = ratrain("--ablate", file, "--out", tmp_path, "--dry-run")
    assert code == 0, err
