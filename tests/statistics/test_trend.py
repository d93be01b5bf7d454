"""Trends over rungs, against weighted least squares, kriging, and ladders of known truth."""

from __future__ import annotations

import numpy as np
import pytest

from ratrain.statistics.moderation import Spread
from ratrain.statistics.trend import Measured, Mixture, trends

X = np.array([10.2, 11.0, 11.8, 12.6])
NOTHING = np.zeros((4, 4))


def spread(sd: float, df: float) -> Spread:
    return Spread(np.ones(1), np.array([sd**2]), np.array([df]))


def measured(gains, sds, df=1e6, shared=NOTHING) -> Measured:
    return Measured(X, np.asarray(gains, float), tuple(spread(sd, df) for sd in sds), shared)


def drawn(rng: np.random.Generator, *, arms: int, tau: float, sd: float, df: int) -> dict[str, Measured]:
    """Arms with a level and a slope of their own, whose errors are known with few degrees of freedom."""
    found = {}
    for arm in range(arms):
        line = rng.normal(0, 0.1) + rng.normal(0, 0.05) * (X - 11)
        gains = line + rng.normal(0, tau, 4) + rng.normal(0, sd, 4)
        known = tuple(spread(sd * (rng.chisquare(df) / df) ** 0.5, df) for _ in range(4))
        found[f"a{arm}"] = Measured(X, gains, known, NOTHING)
    return found


def test_errors_far_above_the_misfit_give_weighted_least_squares():
    gains, sds = np.array([3.0, 1.0, 4.0, 1.5]), np.array([0.8, 1.0, 1.6, 2.0])
    trend = trends({"a": measured(gains, sds)})["a"]
    design = np.stack([np.ones(4), X - X.mean()], 1) / sds[:, None]
    level, slope = np.linalg.lstsq(design, gains / sds, rcond=None)[0]
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    assert trend.slope().mean == pytest.approx(slope, rel=0.02)
    assert trend.slope().sd == pytest.approx(errors[1], rel=0.02)
    assert trend.line(X.mean()).mean == pytest.approx(level, rel=0.02)
    assert trend.line(X.mean()).sd == pytest.approx(errors[0], rel=0.02)


def test_errors_known_with_few_degrees_of_freedom_widen_the_tails():
    gains, sds = [0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]
    sure, unsure = (trends({"a": measured(gains, sds, df)})["a"].slope() for df in (1e6, 3))
    assert unsure.quantile(0.995) > 1.2 * sure.quantile(0.995)


def test_an_error_that_all_rungs_share_is_no_error_of_the_prediction():
    gains, sds = [0.1, 0.12, 0.14, 0.16], [0.001] * 4
    apart, shared = np.eye(4) * 0.2**2, np.full((4, 4), 0.2**2)
    widths = []
    for covariance in (apart, shared):
        of = measured(gains, sds, shared=covariance)
        trend = trends({"a": of.at(range(3))})["a"]
        reading = trend.reading(X[3], of.seeds[3], covariance[3, 3], covariance[3, :3])
        low, high = reading.interval(0.1)
        widths.append(high - low)
        assert low < 0.16 < high
    assert widths[1] < widths[0] / 5


def test_predictions_are_those_of_kriging_if_all_variances_are_known():
    rng = np.random.default_rng(0)
    root = rng.normal(0, 1, (4, 4))
    shared, gains = root @ root.T, rng.normal(0, 1, 4)
    of = measured(gains, [1.0] * 4, shared=shared)
    found = trends({"a": of.at(range(3))})["a"].reading(X[3], of.seeds[3], shared[3, 3], shared[3, :3])
    covariance, cross = shared[:3, :3] + np.eye(3), shared[3, :3]
    design, at = np.stack([np.ones(3), X[:3]], 1), np.array([1.0, X[3]])
    inverse = np.linalg.inv(covariance)
    information = np.linalg.inv(design.T @ inverse @ design)
    line = information @ design.T @ inverse @ gains[:3]
    pulled = at - design.T @ inverse @ cross
    mean = at @ line + cross @ inverse @ (gains[:3] - design @ line)
    variance = shared[3, 3] + 1.0 - cross @ inverse @ cross + pulled @ information @ pulled
    assert found.mean == pytest.approx(mean, abs=0.02)
    assert found.sd == pytest.approx(variance**0.5, rel=0.02)


@pytest.mark.parametrize("tau", [0.005, 0.02, 0.05])
def test_intervals_hold_the_rung_that_was_held_out(tau):
    rng, inside = np.random.default_rng(3), []
    for _ in range(40):
        arms = drawn(rng, arms=6, tau=tau, sd=0.02, df=4)
        for name, trend in trends({name: of.at(range(3)) for name, of in arms.items()}).items():
            of = arms[name]
            low, high = trend.reading(X[3], of.seeds[3], 0.0, np.zeros(3)).interval(0.1)
            inside.append(low < of.gains[3] < high)
    assert 0.83 < np.mean(inside) < 0.98


def test_the_gain_of_a_measured_rung_is_that_of_kriging_if_all_variances_are_known():
    """The conditional mean and variance of a rung's gain, with a prior of level and slope that is all but flat."""
    gains, sds = np.array([0.1, 0.1, 0.12, 0.4]), np.array([0.02, 0.02, 0.02, 0.03])
    trend = trends({"a": measured(gains, sds)})["a"]
    for k in (0, 3):
        found, wanted = trend.measured_rung(k), []
        design = np.stack([np.ones(4), X - X.mean()], 1)
        for tau in np.unique(trend.taus):
            true = design @ design.T * 1e4 + tau**2 * np.eye(4)
            gain = np.linalg.solve(true + np.diag(sds**2), true).T
            wanted.append((trend.weights[trend.taus == tau].sum(), (gain @ gains)[k], (true - gain @ true)[k, k]))
        weights, means, variances = np.array(wanted).T
        assert found.mean == pytest.approx(weights @ means, rel=0.02)
        assert found.sd == pytest.approx((weights @ (variances + (means - weights @ means) ** 2)) ** 0.5, rel=0.03)
    line = trend.line(X[3])
    assert line.mean < trend.measured_rung(3).mean < 0.4


def test_a_rung_of_its_own_is_less_certain_than_the_line():
    trend = trends({"a": measured([0.1, 0.2, 0.1, 0.2], [0.01] * 4)})["a"]
    assert trend.rung(13.0).sd > trend.line(13.0).sd > trend.line(11.4).sd


def test_quantiles_are_those_of_the_mixture():
    mixture = Mixture(np.array([0.3, 0.7]), np.array([0.0, 5.0]), np.array([1.0, 4.0]))
    rng = np.random.default_rng(0)
    of = rng.random(400_000) < 0.3
    draws = np.where(of, rng.normal(0, 1, of.size), rng.normal(5, 2, of.size))
    for p in (0.05, 0.3, 0.5, 0.95):
        assert mixture.quantile(p) == pytest.approx(np.quantile(draws, p), abs=0.03)
    assert mixture.sd == pytest.approx(draws.std(), rel=0.01)


def test_two_rungs_are_refused():
    with pytest.raises(ValueError, match="three rungs or more, got 2"):
        trends({"a": measured([1, 2, 3, 4], [1] * 4).at([0, 1])})
