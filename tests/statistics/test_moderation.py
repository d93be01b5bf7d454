"""Moderated variances on simulated arms whose true variances are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from ratrain.statistics.moderation import Spread, moderated


def simulated(rng, *, arms, df, spread, blur=None):
    """True variances, their chi-square estimates, and a covariate that is `blur` log units off."""
    true = np.exp(rng.normal(0, spread, arms))
    covariate = None if blur is None else true * np.exp(rng.normal(0, blur, arms))
    return true, true * rng.chisquare(df, arms) / df, covariate


def test_one_arm_keeps_its_own_variance():
    (spread,) = moderated([4.0], [2.0])
    assert spread.half_width(0.01) == pytest.approx(student.isf(0.005, 2) * 2.0)
    assert spread.freedom() == pytest.approx(2.0, rel=1e-6)


def test_tail_and_half_width_are_each_others_inverse_and_a_mixture_of_students():
    spread = Spread(np.array([0.3, 0.7]), np.array([1.0, 4.0]), np.array([3.0, 9.0]))
    for level in (1e-6, 0.01, 0.5, 0.9):
        half = spread.half_width(level)
        assert spread.tail(half) == pytest.approx(level)
        assert 2 * (0.3 * student.sf(half, 3) + 0.7 * student.sf(half / 2, 9)) == pytest.approx(level)
    assert spread.tail(0.0) == 1.0


@pytest.mark.parametrize("df", [2, 4])
@pytest.mark.parametrize("known", [0.02, 0.1, 0.5, 4.0])  # variance from documents over that from seeds
def test_a_sum_of_an_ill_known_and_a_known_variance_is_exceeded_no_more_often_than_the_level(known, df):
    rng, studies = np.random.default_rng(4), 4000
    difference = rng.normal(0, np.sqrt(1 + known), studies)
    seeds, documents = rng.chisquare(df, studies) / df, known * rng.chisquare(31, studies) / 31
    p = np.array(
        [
            Spread(np.ones(1), np.array([v]), np.array([float(df)])).plus(e, 31).tail(d)
            for v, e, d in zip(seeds, documents, difference, strict=True)
        ]
    )
    for level in (0.05, 0.01):
        assert 0.25 * level <= np.mean(p <= level) <= level + 2 * np.sqrt(level / studies)


@pytest.mark.parametrize("added", [0.01, 1.0, 9.0])
def test_the_tail_of_a_sum_is_that_of_two_independent_t(added):
    rng = np.random.default_rng(5)
    total = np.abs(np.sqrt(2.0) * rng.standard_t(4, 2_000_000) + np.sqrt(added) * rng.standard_t(12, 2_000_000))
    spread = Spread(np.ones(1), np.array([2.0]), np.array([4.0])).plus(added, 12)
    for level in (0.2, 0.05, 0.002):
        assert np.mean(total > spread.half_width(level)) == pytest.approx(level, rel=0.03 if level > 0.01 else 0.08)
        assert spread.tail(spread.half_width(level)) == pytest.approx(level)


def test_nothing_added_changes_nothing():
    spread = Spread(np.ones(1), np.array([2.0]), np.array([4.0]))
    assert spread.plus(0.0, 12.0).half_width(0.03) == spread.half_width(0.03)
    assert spread.plus(1e-12, 12.0).half_width(0.03) == pytest.approx(spread.half_width(0.03), rel=1e-5)


@pytest.mark.parametrize("blur", [None, 0.3])
@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("arms", [2, 20])
def test_differences_exceed_their_half_width_as_often_as_the_level_says(arms, spread, blur):
    rng, level, far = np.random.default_rng(arms), 0.05, []
    for _ in range(800 // arms):
        true, seen, covariate = simulated(rng, arms=arms, df=2, spread=spread, blur=blur)
        differences = rng.normal(0, np.sqrt(true))
        far += [
            abs(d) > found.half_width(level)
            for d, found in zip(differences, moderated(seen, [2.0] * arms, covariate), strict=True)
        ]
    assert np.mean(far) <= level + 2 * math.sqrt(level / len(far)) + 0.005


def test_a_covariate_gives_degrees_of_freedom():
    rng = np.random.default_rng(0)
    true, seen, covariate = simulated(rng, arms=20, df=2, spread=2.0, blur=0.2)
    with_it, without = (moderated(seen, [2.0] * 20, x) for x in (covariate, None))
    assert np.median([found.freedom() for found in with_it]) > 6
    assert np.median([found.freedom() for found in without]) < 4
    errors = [np.abs(np.log([found.sd**2 for found in of] / true)).mean() for of in (with_it, without)]
    assert errors[0] < 0.6 * errors[1]


def test_correlated_variances_are_worth_fewer():
    seen = [1.0, 1.2, 0.9, 1.1, 0.8, 1.0]
    alone, one, all_of_them = (moderated(seen, [2.0] * 6, independent=n)[0].freedom() for n in (0.0, 1.0, 6.0))
    assert alone < one < all_of_them
    assert alone < 3.5


def test_the_prior_may_be_fitted_to_other_variances_than_the_arms():
    (first, *_) = moderated([100.0] * 6, [2.0] * 6, evidence=[1.0, 1.2, 0.9, 1.1, 0.8, 1.0])
    assert first.sd == pytest.approx(10.0, rel=0.2)  # such arms follow no such prior
    (first, *_) = moderated([2.5] * 6, [2.0] * 6, evidence=[1.0, 1.2, 0.9, 1.1, 0.8, 1.0])
    assert 1.0 < first.sd < math.sqrt(2.5)


def test_equal_variances_come_close_to_pooling():
    spreads = moderated([1.0] * 20, [2.0] * 20)
    assert all(found.sd == pytest.approx(1.0, rel=0.05) and found.freedom() > 15 for found in spreads)


def test_an_arm_four_times_as_variable_leaves_the_prior():
    rng, found = np.random.default_rng(0), []
    for _ in range(30):
        seen = rng.chisquare(4, 20) / 4
        seen[0] = 16 * seen[0]
        found.append(moderated(seen, [4.0] * 20)[0].sd)
    assert np.median(found) == pytest.approx(4.0, rel=0.3)


def test_arms_without_a_covariate_or_without_a_variance():
    given = moderated([1.0, 2.0, math.nan, 1.5], [2.0, 2.0, 0.0, 2.0], [1.0, math.nan, 3.0, 2.0])
    assert given[2] is None
    assert all(found.sd > 0 for at, found in enumerate(given) if at != 2)


def test_variances_of_zero_are_not_taken_for_certainty_beside_others():
    same, *_ = moderated([0.0, 1.0, 2.0, 1.5], [2.0] * 4)
    assert same.half_width(0.05) > 1e-3


@pytest.mark.parametrize("documents", [4, 9, 31])
@pytest.mark.parametrize("ratio", [0.6, 1.0, 3.0])
def test_tail_beside_few_documents_is_the_integral(documents: int, ratio: float):
    from scipy.integrate import quad

    spread = Spread(np.ones(1), np.array([ratio**2]), np.array([4.0])).plus(1.0, float(documents))
    for level in (0.05, 0.005, 0.0001):
        half = spread.half_width(level)

        def beyond(x: float, half: float = half) -> float:
            return float(student.pdf(x, documents) * student.cdf((x - half) / ratio, 4))

        ends = [(-np.inf, 0), (0, half / 2), (half / 2, half), (half, 2 * half), (2 * half, np.inf)]
        exact = 2 * sum(quad(beyond, *end, epsrel=1e-9)[0] for end in ends)
        assert level == pytest.approx(exact, rel=0.1 if documents < 9 else 0.02)
