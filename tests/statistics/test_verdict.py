"""Verdicts on simulated studies: how often they are wrong, how often their intervals hold, when they stay silent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.verdict import judge

DELTA = 2.0  # in standard deviations of a run


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
    wrong, held = false_claims([0.0] * 20, 3, 400)
    assert wrong <= 0.065
    assert held >= 0.935  # a share per arm and a prior of unknown spread leave a little unused


@pytest.mark.slow
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock", "linear"])
def test_looks_and_stopping_do_not_raise_the_error_rate(spending):
    wrong, _ = false_claims([0.0] * 10, 5, 150, spending=spending)
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.slow
def test_no_mixture_of_effects_raises_the_error_rate_of_all_claims():
    wrong, _ = false_claims([0.0, 0.0, DELTA, -DELTA] * 3, 4, 200, delta=DELTA)
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_intervals_hold_planted_effects():
    planted = [0.0, -3.0, 0.5, 8.0, -1.0]
    assert false_claims(planted, 5, 600, looks=(5,))[1] >= 0.935
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
    found = judge(two, "base", planned=9, looks=(), shares=(), running=(), first=4)
    assert "first look is after 4" in found["a10"].why


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


def test_noise_of_the_evaluation_widens_what_the_seeds_allow():
    rng = np.random.default_rng(0)
    base = rng.normal(6, 1, (5, 40))
    parts = {"base": base, "arm": base - 1 + rng.normal(0, 6, 40) + rng.normal(0, 0.1, (5, 40))}
    parts["arm"] -= (parts["arm"] - base).mean() + 1  # an effect of -1 on these documents
    losses = {name: of.mean(1).tolist() for name, of in parts.items()}
    told = {name: [tuple(run) for run in of.tolist()] for name, of in parts.items()}
    alone = judge(losses, "base", planned=5)["arm"]
    both = judge(losses, "base", planned=5, parts=told, sizes=[10] * 40)["arm"]
    assert alone.effect == pytest.approx(-1.0, abs=0.02)
    assert (alone.word, both.word) == ("better", "inconclusive")
    assert both.interval[1] - both.interval[0] > 5 * (alone.interval[1] - alone.interval[0])
    assert "their noise is not known" in alone.why and "their noise" not in both.why


def test_a_block_counts_once_no_running_arm_lacks_it(losses):
    losses["a3"][3] = None
    assert judge(losses, "base", planned=5).looks == (3,)
    assert judge(losses, "base", planned=5, blocks=5).looks == (3, 4, 5)


def test_a_more_variable_arm_is_judged_by_its_own_noise_and_costs_the_others_little():
    rng = np.random.default_rng(1)
    losses = simulated([0.0] * 10 + [-8.0], 5, rng)
    losses["a0"] = rng.normal(0, 60, 5).tolist()
    found = judge(losses, "base", planned=5)
    assert found["a0"].sd > 10 * found["a1"].sd and found["a0"].df < 6
    assert found["a10"].word == "better"


@pytest.mark.slow
@pytest.mark.parametrize("documents", [0, 32])
@pytest.mark.parametrize(("arms", "variable"), [(5, "arm"), (5, "base"), (20, "arm"), (20, "base")])
def test_an_arm_or_the_baseline_four_times_as_variable_raises_no_error_rate(arms, variable, documents):
    rng, wrong, studies = np.random.default_rng(arms), 0, 120
    names = ["base", *(f"a{n}" for n in range(arms))]
    for _ in range(studies):
        sds = np.ones((arms + 1, 1, 1))
        sds[{"none": [], "arm": [1], "base": [0]}[variable]] = 4
        inside = 3 * rng.standard_normal((arms + 1, 3, documents or 2))
        y = sds * (rng.standard_normal((arms + 1, 3, 1)) + inside - inside.mean(2, keepdims=True))
        losses = dict(zip(names, y.mean(2).tolist(), strict=True))
        parts = {name: [tuple(run) for run in of.tolist()] for name, of in zip(names, y, strict=True)}
        told = {"parts": parts, "sizes": [32] * documents} if documents else {}
        wrong += any(is_false(v, 0.0) for v in judge(losses, "base", planned=3, **told).verdicts)
    assert wrong / studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def test_documents_tell_how_variable_arms_are_and_make_verdicts_surer():
    rng, arms = np.random.default_rng(0), 20
    sds = np.geomspace(0.1, 5.0, arms + 1)[:, None, None]
    inside = 3 * rng.standard_normal((arms + 1, 3, 40))
    y = sds * (rng.standard_normal((arms + 1, 3, 1)) + inside - inside.mean(2, keepdims=True))
    names = ["base", *(f"a{n}" for n in range(arms))]
    losses = dict(zip(names, y.mean(2).tolist(), strict=True))
    parts = {name: [tuple(run) for run in of.tolist()] for name, of in zip(names, y, strict=True)}
    with_them = judge(losses, "base", planned=3, parts=parts, sizes=[32] * 40)
    without = judge(losses, "base", planned=3)
    true = np.sqrt(sds[1:, 0, 0] ** 2 + 0.1**2)
    assert np.abs(np.log([v.sd for v in with_them.verdicts] / true)).max() < 0.7
    assert with_them.df > 8 > without.df


def test_losses_beyond_the_plan_are_refused(losses):
    with pytest.raises(ValueError, match="4 seeds are planned"):
        judge(losses, "base", planned=4)
    with pytest.raises(ValueError, match="5 seeds are planned"):
        judge(losses, "base", planned=5, looks=(3, 4))
    with pytest.raises(ValueError, match="delta above 0"):
        judge(losses, "base", planned=5, delta=0.0)


def test_a_look_that_spends_nothing_gives_no_verdict(losses):
    options = {"planned": 9, "spending": "linear", "looks": (3, 4, 5)}
    some = judge(losses, "base", shares=(0.5, 0.5, 0.9), running=[[f"a{n}" for n in range(12)]] * 3, **options)
    first = judge(losses, "base", shares=(0.5, 0.5, 0.5), running=[[f"a{n}" for n in range(12)]] * 3, **options)
    assert {v.arm for v in first.verdicts if v.stops} == {"a10", "a11"}
    assert {v.seeds for v in first.verdicts if v.stops} == {3}
    assert all(v.interval == (-math.inf, math.inf) for v in first.verdicts if not v.stops)
    assert some.looks == (3, 4, 5)
