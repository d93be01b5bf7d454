"""Ratios of arms that were not all measured in the same rounds."""

from __future__ import annotations

import pytest

from bench.costs import bench_peers
from bench.costs.setting import Measured, Setting


def test_an_arm_is_compared_with_the_base_that_ran_beside_it():
    seconds = {"ours": [1.0, 1.0], "slower": [3.0, 3.0]}
    assert Measured("s", seconds, base="ours").ratio("slower").median == 3
    assert Measured("s", seconds, base="ours", bases={"slower": [2.0, 2.0]}).ratio("slower").median == 1.5


def test_peers_on_a_gpu_are_measured_two_at_a_time(monkeypatch):
    together = []

    def measure_arms(setting, arms, *, share, told):
        together.append((list(arms), share))
        return {name: [float(len(together)) if name == "ours" else 2.0 * len(together)] * 5 for name in arms}

    monkeypatch.setattr(Setting, "measure_arms", measure_arms)
    setting = Setting(scale="tiny", device="cuda", rounds=None, minutes=1)
    found = bench_peers._measure("gpt2_124m", setting)
    assert together == [(["ours", "ours again"], 0.15), (["ours", "ours, eager"], 0.15)]
    assert found.ratio("ours, eager").median == pytest.approx(2)
