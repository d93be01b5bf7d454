"""The statistics on runs that were trained: the short form of calibration.py, whose long form is in docs/studies.md."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

CALIBRATION = runpy.run_path(str(Path(__file__).parent / "calibration.py"))


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, CALIBRATION["DELTA"]])
def test_studies_of_arms_without_an_effect_claim_none(effect):
    # 1.5 points of allowance, and two standard errors of so few studies
    assert CALIBRATION["false_claims"](150, effect=effect) <= 0.065 + 2 * (0.05 * 0.95 / 150) ** 0.5


@pytest.mark.slow
def test_an_effect_of_the_detectable_size_is_found_four_times_of_five():
    _, found = CALIBRATION["power"](100)
    assert found == pytest.approx(0.8, abs=0.05 + 0.03)  # arms of a study share its baseline


def test_arms_of_more_or_fewer_tokens_are_read_back_on_the_ruler():
    shares = CALIBRATION["coverage"](100)
    assert sum(shares.values()) / 3 == pytest.approx(0.95, abs=0.02 + 0.03)


def test_an_arm_of_another_best_learning_rate_is_worse_untuned_and_equivalent_tuned():
    shared, tuned, best = CALIBRATION["moved_learning_rate"]()
    assert (shared, tuned) == ("worse", "equivalent")
    assert best["moved"]["lr"] < best["base"]["lr"]
