"""The statistics on trained runs: the short form of calibration.py, whose long form is in docs/verdicts.md."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

CALIBRATION = runpy.run_path(str(Path(__file__).parent / "calibration.py"))


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "variable"), [(1, "none"), (20, "none"), (20, "arm"), (20, "base")])
def test_studies_of_arms_without_an_effect_claim_none(arms, variable):
    # 1.5 points of allowance, and two standard errors of so few studies
    share = CALIBRATION["false_claims"](100, arms=arms, variable=variable)
    assert share <= 0.065 + 2 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.slow
def test_arms_whose_effect_is_delta_are_not_called_equivalent():
    share = CALIBRATION["false_claims"](100, effect=CALIBRATION["DELTA"])
    assert share <= 0.065 + 2 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.slow
def test_an_effect_of_the_detectable_size_is_found_four_times_of_five():
    found = [share for _, share in CALIBRATION["power"](60).values()]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04 + 0.05)


@pytest.mark.slow
def test_intervals_hold_the_effects_of_arms_of_more_or_fewer_tokens():
    every, budgets = CALIBRATION["coverage"](60)
    assert every == pytest.approx(0.95, abs=0.035)
    # arms share their initial weights with the ruler, whose error cancels in part: its intervals are on the wide side
    assert min(ruler for _, ruler in budgets.values()) >= 0.93


def test_an_arm_of_another_best_learning_rate_is_worse_untuned_and_equivalent_tuned():
    shared, tuned, best = CALIBRATION["moved_learning_rate"]()
    assert (shared, tuned) == ("worse", "equivalent")
    assert best["moved"]["lr"] == 2 * best["base"]["lr"]
