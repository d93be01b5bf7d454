"""Verdicts on simulated studies: how often they are wrong, how often their intervals hold, when they stay silent."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from ratrain.statistics.noise import EvaluationNoise
from ratrain.statistics.verdict import judge

DELTA = 2.0  # in residual standard deviations


def simulated(effects, seeds, rng):
    y = rng.normal(0, 3, seeds) + rng.standard_normal((len(effects) + 1, seeds))
    y[1:] += np.array(effects)[:, None]
    return {"base": y[0].tolist()} | {f"a{arm}": row for arm, row in enumerate(y[1:].tolist())}


def is_false(verdict, effect):
    words = {"better": effect >= 0, "worse": effect <= 0, "equivalent": abs(effect) >= DELTA}
    return words.get(verdict.word, False)


def false_claims(effects, seeds, studies, **options):
    """Share of studies with a false claim, and of those whose intervals all hold."""
    rng = np.random.default_rng(42)
    wrong, held = 0, 0
    for _ in range(studies):
        found = judge(simulated(effects, seeds, rng), "base", planned=seeds, **options).verdicts
        wrong += any(is_false(verdict, effect) for verdict, effect in zip(found, effects, strict=True))
        held += all(v.interval[0] <= effect <= v.interval[1] for v, effect in zip(found, effects, strict=True))
    return wrong / studies, held / studies


@pytest.mark.slow
def test_twenty_arms_of_three_seeds_without_effects_are_seldom_called_better_or_worse():
    wrong, held = false_claims([0.0] * 20, 3, 2000)
    assert wrong <= 0.065
    assert held == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_looks_and_stopping_do_not_raise_the_error_rate(spending):
    wrong, _ = false_claims([0.0] * 20, 5, 1000, spending=spending)
    assert wrong <= 0.065


@pytest.mark.slow
def test_no_mixture_of_effects_raises_the_error_rate_of_all_claims():
    wrong, _ = false_claims([0.0, 0.0, DELTA, -DELTA] * 3, 4, 1000, delta=DELTA)
    assert wrong <= 0.065


def test_intervals_hold_planted_effects():
    planted = [0.0, -3.0, 0.5, 8.0, -1.0]
    assert false_claims(planted, 5, 1500, looks=(5,))[1] == pytest.approx(0.95, abs=0.02)
    rng = np.random.default_rng(7)
    held = [
        verdict.pointwise[0] <= effect <= verdict.pointwise[1]
        for _ in range(500)
        for verdict, effect in zip(
            judge(simulated(planted, 5, rng), "base", planned=5, looks=(5,)).verdicts, planted, strict=True
        )
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


@pytest.fixture
def losses():
    return simulated([0.0] * 10 + [-20.0, 20.0], 5, np.random.default_rng(0))


def test_large_effects_are_called_and_their_arms_may_stop(losses):
    found = judge({name: row[:3] for name, row in losses.items()}, "base", planned=5)
    assert (found["a10"].word, found["a11"].word) == ("better", "worse")
    assert found.open == tuple(f"a{arm}" for arm in range(10))


def test_a_verdict_once_given_stays_whatever_the_arm_runs_later(losses):
    early = judge({name: row[:3] for name, row in losses.items()}, "base", planned=5)["a10"]
    stopped = losses | {"a10": [*losses["a10"][:3], None, None]}
    turned = losses | {"a10": [*losses["a10"][:3], 50.0, 50.0]}
    for later in (losses, stopped, turned):
        found = judge(later, "base", planned=5)
        assert found["a10"] == early
        assert found.looks == (3, 4, 5)
        assert not found.open
    assert judge(stopped, "base", planned=5) == judge(turned, "base", planned=5)


def test_two_seeds_are_inconclusive_however_large_the_effect(losses):
    two = {name: row[:2] for name, row in losses.items()}
    for planned in (2, 5):
        found = judge(two, "base", planned=planned, delta=100.0)
        assert {verdict.word for verdict in found.verdicts} == {"inconclusive"}
        assert not found.looks
    assert found["a10"].effect == pytest.approx(-20, abs=2)
    assert "first look is after 3" in found["a10"].why


@pytest.mark.parametrize("at", range(5))
def test_a_diverged_seed_bars_better_and_is_told(losses, at):
    losses["a10"][at] = math.nan
    found = judge(losses, "base", planned=5, delta=DELTA)["a10"]
    assert found.word == "inconclusive"
    assert found.diverged == 1
    assert "1 seed diverged" in found.why


def test_a_diverged_seed_does_not_hide_that_an_arm_is_worse(losses):
    losses["a11"][1] = math.inf
    found = judge(losses, "base", planned=5)["a11"]
    assert found.word == "worse" and "1 seed diverged" in found.why


def test_a_diverged_baseline_bars_worse(losses):
    losses["base"][1] = math.nan
    found = judge(losses, "base", planned=5)
    assert (found["a10"].word, found["a11"].word) == ("better", "inconclusive")


def test_an_arm_that_diverged_everywhere_is_inconclusive_and_told(losses):
    losses["a3"] = [math.nan] * 5
    found = judge(losses, "base", planned=5)["a3"]
    assert found.word == "inconclusive" and "5 seeds diverged" in found.why
    assert found.interval == pytest.approx((-math.inf, math.inf), nan_ok=True) or math.isnan(found.effect)


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_identical_arm_and_its_twin_are_equivalent(losses, seeds):
    noise = np.random.default_rng(5).normal(0, 1e-3, 5)
    losses |= {"twin": (np.array(losses["base"]) + noise).tolist(), "same": list(losses["base"])}
    found = judge({k: v[:seeds] for k, v in losses.items()}, "base", planned=seeds, delta=0.5)
    assert (found["twin"].word, found["same"].word) == ("equivalent", "equivalent")
    assert found["a10"].word == "better"
    assert judge(losses, "base", planned=5)["twin"].word == "inconclusive"  # without a delta nothing is


def test_noise_of_the_evaluation_widens_what_the_seeds_allow(losses):
    alone = judge(losses, "base", planned=5)["a10"]
    both = judge(losses, "base", planned=5, noise={"a10": EvaluationNoise(30.0, 500)})["a10"]
    assert (alone.word, both.word) == ("better", "inconclusive")
    assert both.interval[1] - both.interval[0] > 10 * (alone.interval[1] - alone.interval[0])
    assert "their noise is not known" in alone.why and "their noise" not in both.why


def test_a_block_counts_once_no_running_arm_lacks_it(losses):
    losses["a3"][3] = None
    assert judge(losses, "base", planned=5).looks == (3,)
    assert judge(losses, "base", planned=5, blocks=5).looks == (3, 4, 5)


def test_a_more_variable_arm_says_so_and_costs_the_others_nothing():
    rng = np.random.default_rng(1)
    losses = simulated([0.0] * 10 + [-8.0], 5, rng)
    losses["a0"] = rng.normal(0, 60, 5).tolist()
    found = judge(losses, "base", planned=5)
    assert "vary significantly more" in found["a0"].why and found["a0"].df == 4
    assert found["a10"].word == "better"


def test_losses_beyond_the_plan_are_refused(losses):
    with pytest.raises(ValueError, match="4 seeds are planned"):
        judge(losses, "base", planned=4)
    with pytest.raises(ValueError, match="5 seeds are planned"):
        judge(losses, "base", planned=5, looks=(3, 4))
    with pytest.raises(ValueError, match="delta above 0"):
        judge(losses, "base", planned=5, delta=0.0)


def test_verdicts_on_25_arms_of_5_seeds_take_less_than_a_second():
    losses = simulated([0.0] * 25, 5, np.random.default_rng(0))
    judge(losses, "base", planned=5, delta=DELTA)  # fills the caches of critical values
    began = time.perf_counter()
    judge(losses, "base", planned=5, delta=DELTA)
    assert time.perf_counter() - began < 1.0
