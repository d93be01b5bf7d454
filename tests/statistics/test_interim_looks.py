"""What each look may use of the error rate, and that all of them together use no more than all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from ratrain.statistics.interim_looks import levels, look_times


def test_the_first_look_is_after_three_seeds():
    assert look_times(5) == (3, 4, 5)
    assert look_times(2) == ()


def test_one_look_has_it_all():
    assert levels((5,), 0.05) == (0.05,)


def test_the_first_level_is_what_the_spending_function_gives():
    assert levels((3, 4, 5), 0.05)[0] == pytest.approx(0.0076, abs=1e-4)  # 4 - 4 Phi(2.2414 / sqrt(0.6))
    assert levels((3, 4, 5), 0.05, "pocock")[0] == pytest.approx(0.05 * np.log(1 + (np.e - 1) * 0.6))
    assert levels((3, 4, 5), 0.05, "linear")[0] == pytest.approx(0.03)


def test_late_looks_are_not_charged_for_what_earlier_ones_found():
    # Lan-DeMets, O'Brien-Fleming, five equal looks, known variance: z = 4.877, 3.357, 2.680, 2.290, 2.031
    # the overlap is simulated, which moves a level by 0.001, and 99 degrees of freedom are not infinitely many
    np.testing.assert_allclose(levels(tuple(range(20, 101, 20)), 0.05)[2:], [0.0074, 0.0220, 0.0423], atol=0.003)
    assert sum(levels((3, 4, 5), 0.05)) > 0.05


@pytest.mark.parametrize("prior", [0, 8])
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock", "linear"])
@pytest.mark.parametrize(("looks", "alpha"), [((3, 4, 5), 0.05), ((3, 4, 5), 0.0025), (tuple(range(3, 21)), 0.05)])
def test_an_arm_without_an_effect_is_called_at_any_look_with_probability_alpha(looks, alpha, spending, prior):
    studies, rng = 100_000, np.random.default_rng(11)
    y = rng.standard_normal((looks[-1], studies))
    known = rng.chisquare(prior, studies) if prior else 0.0
    claimed = np.zeros(studies, dtype=bool)
    for seeds, level in zip(looks, levels(looks, alpha, spending), strict=True):
        seen, df = y[:seeds], seeds - 1 + prior
        sd = np.sqrt((((seen - seen.mean(0)) ** 2).sum(0) + known) / df)
        claimed |= np.abs(seen.mean(0)) > student.isf(level / 2, df) * sd / math.sqrt(seeds)
    error = 3 * math.sqrt(alpha / studies)
    assert claimed.mean() <= alpha + error
    assert claimed.mean() >= (0.8 if prior else 0.9) * alpha - error  # a prior makes looks more alike


@pytest.mark.parametrize("looks", [(), (1, 3), (5, 4), (3, 3)])
def test_looks_that_do_not_grow_are_refused(looks):
    with pytest.raises(ValueError, match="growing"):
        levels(looks, 0.05)


def test_an_unknown_spending_function_is_refused():
    with pytest.raises(ValueError, match="spending is one of obrien_fleming, pocock, linear"):
        levels((3, 4), 0.05, "evenly")


@pytest.mark.parametrize("shares", [(0.2, 0.5, 0.8), (0.1, 0.1, 1.0), (0.8, 0.85, 0.9)])
def test_shares_of_time_spend_their_part_of_alpha(shares):
    looks, alpha, studies = (3, 7, 9), 0.05, 200_000
    y = np.random.default_rng(12).standard_normal((looks[-1], studies))
    claimed = np.zeros(studies, dtype=bool)
    for seeds, level in zip(looks, levels(looks, alpha, "linear", shares), strict=True):
        seen = y[:seeds]
        t = seen.mean(0) / (seen.std(0, ddof=1) / math.sqrt(seeds))
        claimed |= np.abs(t) > student.isf(level / 2, seeds - 1)
    assert claimed.mean() == pytest.approx(alpha * shares[-1], abs=4 * math.sqrt(alpha / studies))


def test_a_level_depends_on_earlier_looks_alone():
    assert levels((3, 5), 0.05, "linear", (0.2, 0.3)) == levels((3, 5, 8), 0.05, "linear", (0.2, 0.3, 1.0))[:2]


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.4), (0.0, 0.5), (0.5, 1.5)])
def test_shares_that_fall_or_do_not_fit_are_refused(shares):
    with pytest.raises(ValueError, match="shares grow"):
        levels((3, 5), 0.05, "linear", shares)
