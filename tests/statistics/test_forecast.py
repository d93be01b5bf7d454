"""Forecasts of verdicts against simulated continuations."""

from __future__ import annotations

import numpy as np
import pytest

from ratrain.statistics.forecast import MOST, Standing, chance_of_verdict, seeds_needed

LEVEL = 0.01


@pytest.mark.parametrize(
    ("effect", "seeds", "delta"), [(0.9, 20, None), (0.3, 12, None), (0.1, 40, 0.8), (2.5, 6, None)]
)
def test_the_chance_is_that_of_simulated_continuations(effect, seeds, delta):
    arm, rng = Standing(effect, 1.0, 1e6, 4), np.random.default_rng(1)
    truth = effect + rng.standard_normal(100_000) / 2  # the posterior of a flat prior after four seeds
    mean = (4 * effect + (seeds - 4) * truth + rng.standard_normal(100_000) * np.sqrt(seeds - 4)) / seeds
    called = np.abs(mean) > arm.half_width(seeds, LEVEL)
    if delta is not None:
        called |= np.abs(mean) < delta - arm.half_width(seeds, 2 * LEVEL)
    assert chance_of_verdict(arm, seeds, LEVEL, delta) == pytest.approx(called.mean(), abs=0.005)


def test_barred_verdicts_are_no_chance():
    arm = Standing(-3.0, 1.0, 20.0, 4)
    assert chance_of_verdict(arm, 20, LEVEL, None) > 0.99
    barred = Standing(-3.0, 1.0, 20.0, 4, barred=("better",))
    assert chance_of_verdict(barred, 20, LEVEL, None) < 1e-6
    assert seeds_needed(barred, LEVEL, None) is None


def test_without_more_seeds_there_is_no_chance():
    assert chance_of_verdict(Standing(0.5, 1.0, 3.0, 4), 4, LEVEL, None) == 0.0


@pytest.mark.parametrize(("effect", "delta"), [(0.5, None), (0.05, 0.6)])
def test_the_needed_seeds_have_the_wanted_power(effect, delta):
    arm, rng = Standing(effect, 1.0, 1e6, 4), np.random.default_rng(2)
    seeds = seeds_needed(arm, LEVEL, delta)
    for count, enough in ((seeds, True), (seeds - 1, False)):
        mean = effect + rng.standard_normal(1_000_000) / np.sqrt(count)
        called = np.abs(mean) > arm.half_width(count, LEVEL)
        if delta is not None:
            called |= np.abs(mean) < delta - arm.half_width(count, 2 * LEVEL)
        assert (called.mean() > 0.8) == enough


def test_no_number_of_seeds_decides_what_documents_leave_open():
    assert seeds_needed(Standing(0.01, 1.0, 10.0, 5), LEVEL, None) is None
    assert seeds_needed(Standing(0.5, 1.0, 10.0, 5), LEVEL, None) <= MOST
    assert seeds_needed(Standing(0.5, 1.0, 10.0, 5, evaluation=0.4), LEVEL, None) is None
