"""Dunnett's family against scipy's own, and against sampling where there are gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ratrain.statistics.dunnett import Family, carried


@pytest.mark.parametrize("counts", [(5, 5, 5, 5, 5), (6, 3, 7, 5, 4)])
def test_p_values_are_those_of_scipy_on_a_one_way_layout(counts):
    rng = np.random.default_rng(3)
    base, *arms = (rng.normal(size=n) for n in counts)
    wanted = stats.dunnett(*arms, control=base, rng=np.random.default_rng(0))
    n = np.array(counts[1:])
    family = Family(tuple(np.sqrt(n / (n + counts[0]))), sum(counts) - len(counts))
    np.testing.assert_allclose(family.p(wanted.statistic), wanted.pvalue, atol=2e-4)


@pytest.mark.parametrize(("arms", "runs"), [(2, 4), (5, 3), (9, 7), (20, 3)])
def test_critical_values_are_those_of_scipy(arms, runs):
    rng = np.random.default_rng(5)
    base, *others = samples = rng.normal(size=(arms + 1, runs))
    wanted = stats.dunnett(*others, control=base, rng=np.random.default_rng(0)).confidence_interval(0.95)
    se = math.sqrt(np.mean([sample.var(ddof=1) for sample in samples]) * 2 / runs)
    critical = (wanted.high - wanted.low)[0] / 2 / se
    assert Family.full(arms, (arms + 1) * (runs - 1)).critical(0.05) == pytest.approx(critical, rel=0.005)


def test_one_arm_is_student():
    family = Family.full(1, 7)
    assert family.critical(0.05) == pytest.approx(stats.t.isf(0.025, 7))
    assert family.one_sided(0.05) == pytest.approx(stats.t.isf(0.05, 7))
    assert family.p(np.array([2.0]))[0] == pytest.approx(2 * stats.t.sf(2.0, 7), abs=1e-6)


@pytest.mark.parametrize("df", [2, 5, 38, math.inf])
def test_a_p_value_at_the_critical_value_is_the_level(df):
    family = Family.full(20, df)
    for level in (0.05, 0.0114, 0.0003):
        assert family.p(np.array([family.critical(level)]))[0] == pytest.approx(level, rel=1e-3)


def test_correlations_that_are_products_are_taken_apart():
    loadings = np.array([0.5, 0.6, 0.7, 0.8])
    correlation = np.outer(loadings, loadings)
    np.fill_diagonal(correlation, 1.0)
    np.testing.assert_allclose(Family.of(correlation, 10).loadings, loadings, atol=1e-4)


def test_gaps_in_a_table_move_the_error_rate_by_little():
    from ratrain.statistics.arm_seed_model import effects

    rng = np.random.default_rng(0)
    losses = {f"a{arm}": rng.normal(size=5).tolist() for arm in range(8)}
    for arm, seed in ((1, 0), (1, 1), (2, 4), (5, 2), (0, 3)):
        losses[f"a{arm}"][seed] = None
    found = effects(losses, "a0")
    family = Family.of(found.correlation, found.df)
    z = rng.multivariate_normal(np.zeros(7), found.correlation, 200_000)
    t = np.abs(z).max(1) / np.sqrt(rng.chisquare(found.df, len(z)) / found.df)
    assert (t > family.critical(0.05)).mean() == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("mixture", [(0, 10, 10), (0, 20, 0), (7, 7, 6), (19, 1, 0), (20, 0, 0)])
def test_false_claims_of_every_kind_share_one_level(mixture):
    family = Family.full(20, 38)
    two_sided, one_sided = family.critical(0.05), family.one_sided(0.05)
    assert stats.t.isf(0.05, 38) < one_sided < two_sided
    rng = np.random.default_rng(1)
    z = (rng.standard_normal((60_000, 20)) + rng.standard_normal((60_000, 1))) / math.sqrt(2)
    t = z / np.sqrt(rng.chisquare(38, (len(z), 1)) / 38)
    zero, up, _ = mixture
    wrong = (np.abs(t[:, :zero]) > two_sided).any(1)
    wrong |= (t[:, zero : zero + up] < -one_sided).any(1) | (t[:, zero + up :] > one_sided).any(1)
    assert wrong.mean() <= 0.05 + 0.003


def test_a_t_is_carried_to_other_degrees_of_freedom_with_its_sign_and_level():
    assert carried(-4.0, 4, 38) == pytest.approx(stats.t.ppf(stats.t.cdf(-4.0, 4), 38))
    assert carried(4.0, 4, math.inf) == pytest.approx(-stats.norm.ppf(stats.t.cdf(-4.0, 4)))
    assert carried(1.5, 9, 9) == 1.5
