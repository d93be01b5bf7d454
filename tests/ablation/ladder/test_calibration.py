"""Trends on trained runs: the short form of calibration.py, whose long form is in docs/ladders.md."""

from __future__ import annotations

import runpy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

CALIBRATION = runpy.run_path(str(Path(__file__).parent / "calibration.py"))
LADDERS = 60


@lru_cache(maxsize=1)
def found():
    return CALIBRATION["outcomes"](LADDERS)


def error(share: float) -> float:
    """Two standard errors of a share of so few ladders, whose arms are not independent."""
    return 2 * (share * (1 - share) / LADDERS) ** 0.5


@pytest.mark.slow
def test_intervals_hold_the_rung_that_was_held_out():
    inside = [held for of in found().held_out.values() for held in of]
    assert 0.87 - error(0.9) <= np.mean(inside) <= 0.93 + error(0.9)


@pytest.mark.slow
def test_arms_without_an_effect_are_seldom_said_to_gain():
    for name in CALIBRATION["NULLS"]:
        assert CALIBRATION["said"](found(), name, "gain") <= 0.05 + error(0.05)


@pytest.mark.slow
def test_gains_that_shrink_are_recognised():
    assert CALIBRATION["said"](found(), "shrinking", *CALIBRATION["SHRINKS"]) >= 0.8 - error(0.8)


@pytest.mark.slow
def test_gains_that_hold_are_found():
    assert CALIBRATION["said"](found(), "1.2", "gain") >= 0.8 - error(0.8)
    assert CALIBRATION["said"](found(), "1.2", *CALIBRATION["SHRINKS"]) <= 0.05 + error(0.05)
