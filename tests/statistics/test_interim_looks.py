"""What each look may use of the error rate, and that all of them together use no more than all of it."""

from __future__ import annotations

import numpy as np
import pytest

from ratrain.statistics.dunnett import Family
from ratrain.statistics.interim_looks import levels, look_times


def test_the_first_look_is_after_three_seeds():
    assert look_times(5) == (3, 4, 5)
    assert look_times(2) == ()


def test_one_look_has_it_all():
    assert levels(20, (5,), 0.05) == (0.05,)


def test_the_first_level_is_what_the_spending_function_gives():
    assert levels(20, (3, 4, 5), 0.05)[0] == pytest.approx(0.0076, abs=1e-4)  # 4 - 4 Phi(2.2414 / sqrt(0.6))
    assert levels(20, (3, 4, 5), 0.05, "pocock")[0] == pytest.approx(0.05 * np.log(1 + (np.e - 1) * 0.6))


def test_late_looks_are_not_charged_for_what_earlier_ones_found():
    one_arm = levels(1, tuple(range(20, 101, 20)), 0.05)
    # Lan-DeMets, O'Brien-Fleming, five equal looks, known variance: z = 4.877, 3.357, 2.680, 2.290, 2.031
    # the overlap is simulated, which moves a level by 0.001, and 99 degrees of freedom are not infinitely many
    np.testing.assert_allclose(one_arm[2:], [0.0074, 0.0220, 0.0423], atol=0.003)
    assert sum(levels(20, (3, 4, 5), 0.05)) > 0.05


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
@pytest.mark.parametrize("arms", [1, 20])
def test_a_study_without_effects_claims_one_at_any_look_with_probability_alpha(arms, spending):
    looks, studies = (3, 4, 5), 20_000
    rng = np.random.default_rng(11)
    y = rng.standard_normal((5, arms + 1, studies))
    claimed = np.zeros(studies, dtype=bool)
    for seeds, level in zip(looks, levels(arms, looks, 0.05, spending), strict=True):
        seen = y[:seeds]
        rest = seen - seen.mean(0) - seen.mean(1, keepdims=True) + seen.mean((0, 1))
        df = arms * (seeds - 1)
        sd = np.sqrt((rest**2).sum((0, 1)) / df)
        t = (seen.mean(0)[1:] - seen.mean(0)[0]) / (sd * np.sqrt(2 / seeds))
        claimed |= np.abs(t).max(0) > Family.full(arms, df).critical(level)
    assert claimed.mean() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("looks", [(), (1, 3), (5, 4), (3, 3)])
def test_looks_that_do_not_grow_are_refused(looks):
    with pytest.raises(ValueError, match="growing"):
        levels(3, looks, 0.05)


def test_an_unknown_spending_function_is_refused():
    with pytest.raises(ValueError, match="spending is one of obrien_fleming, pocock"):
        levels(3, (3, 4), 0.05, "linear")
