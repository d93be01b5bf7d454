"""The arm + seed model against least squares written out, and against Student's paired t."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.arm_seed_model import Table, effects


def study(arms, seeds, *, seed=0, sd=1.0):
    """Losses of arms without effects; the seeds differ by much more than the residuals."""
    rng = np.random.default_rng(seed)
    sds = np.broadcast_to(sd, (arms,))[:, None]
    y = rng.normal(0, 5, seeds) + sds * rng.standard_normal((arms, seeds))
    return {f"a{arm}": row for arm, row in enumerate(y.tolist())}


def by_hand(losses):
    """Effects against the first arm, their covariance and the residual variance, with treatment coding."""
    names = list(losses)
    cells = [(a, s, loss) for a, name in enumerate(names) for s, loss in enumerate(losses[name]) if loss is not None]
    seeds = 1 + max(s for _, s, _ in cells)
    x = np.zeros((len(cells), len(names) + seeds - 1))
    for row, (a, s, _) in enumerate(cells):
        x[row, 0] = 1
        if a:
            x[row, a] = 1
        if s:
            x[row, len(names) - 1 + s] = 1
    y = np.array([loss for _, _, loss in cells])
    beta, rss, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    variance = float(rss[0]) / (len(y) - rank)
    covariance = variance * np.linalg.inv(x.T @ x)
    k = slice(1, len(names))
    return beta[k], covariance[k, k], variance, len(y) - rank


@pytest.mark.parametrize("gaps", [(), ((1, 0), (2, 3), (2, 4)), ((0, 1), (3, 3))])
def test_the_effects_are_those_of_least_squares(gaps):
    losses = study(6, 5, seed=1)
    for arm, seed in gaps:
        losses[f"a{arm}"][seed] = None
    values, covariance, variance, df = by_hand(losses)
    found = effects(losses, "a0")
    assert not any(arm.own for arm in found.arms)
    np.testing.assert_allclose([arm.value for arm in found.arms], values, rtol=1e-9)
    np.testing.assert_allclose([arm.se for arm in found.arms], np.sqrt(np.diag(covariance)), rtol=1e-9)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.correlation, covariance / np.outer(scale, scale), rtol=1e-9)
    assert found.sd**2 == pytest.approx(variance)
    assert found.df == df


def test_two_arms_are_a_paired_t_test():
    losses = study(2, 6)
    (arm,) = effects(losses, "a0").arms
    d = np.array(losses["a1"]) - losses["a0"]
    assert (arm.value, arm.se, arm.df) == pytest.approx((d.mean(), d.std(ddof=1) / math.sqrt(6), 5))


def test_three_seeds_of_twenty_arms_leave_38_degrees_of_freedom():
    assert effects(study(20, 3), "a0").df == 38


def test_what_other_arms_lack_does_not_move_an_effect():
    losses = study(6, 5)
    before = effects(losses, "a0").arms[0].value
    losses["a4"][1:] = [None] * 4
    assert effects(losses, "a0").arms[0].value == pytest.approx(before)


def test_a_diverged_run_is_no_loss_and_is_told_apart_from_one_that_is_missing():
    table = Table.of({"a": [1.0, 2.0, 3.0], "b": [1.0, math.nan, None], "c": [math.inf, 1.0]}, "a")
    assert table.diverged.tolist() == [[False] * 3, [False, True, False], [True, False, False]]
    assert np.isfinite(table.losses).tolist() == [[True] * 3, [True, False, False], [False, True, False]]


def test_an_arm_that_shares_no_seed_with_the_baseline_has_no_effect():
    losses = study(5, 4) | {"gone": [None] * 4}
    *_, gone = effects(losses, "a0").arms
    assert gone.pairs == 0 and math.isnan(gone.value)
    assert effects(losses, "a0").sd == pytest.approx(effects(study(5, 4), "a0").sd)


def test_a_much_more_variable_arm_is_judged_by_its_own_differences_and_leaves_the_pool():
    calm = study(12, 5)
    losses = study(12, 5, sd=[*[1.0] * 11, 30.0])
    *others, wild = effects(losses, "a0").arms
    d = np.array(losses["a11"]) - losses["a0"]
    assert "more" in wild.own
    assert (wild.value, wild.se, wild.df) == pytest.approx((d.mean(), d.std(ddof=1) / math.sqrt(5), 4))
    assert not any(arm.own for arm in others)
    assert effects(losses, "a0").sd == pytest.approx(effects({k: v for k, v in calm.items() if k != "a11"}, "a0").sd)


def test_a_much_more_variable_baseline_takes_every_arm_out_of_the_pool():
    found = effects(study(12, 5, sd=[30.0, *[1.0] * 11]), "a0")
    assert all("a0" in arm.own and arm.df == 4 for arm in found.arms)


def test_equally_variable_arms_are_seldom_taken_for_more_variable():
    found = [effects(study(21, 3, seed=seed), "a0") for seed in range(600)]
    assert np.mean([any(arm.own for arm in each.arms) for each in found]) <= 0.07


def test_losses_that_are_all_the_same_have_no_variance():
    found = effects({name: [1.1, 2.7, 3.9] for name in "abcd"}, "a")
    assert found.sd == 0
    assert [(arm.value, arm.se) for arm in found.arms] == [(0, 0)] * 3


def test_a_baseline_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="expected losses of 'z'"):
        effects({"a": [1.0], "b": [2.0]}, "z")
