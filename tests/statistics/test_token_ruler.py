"""Effects read as tokens through a curve that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.token_ruler import Ruler

BUDGETS = [round(1e6 * 2 ** (step / 2)) for step in range(-4, 5)]


def law(tokens):
    return 2.0 + 3.0 * (tokens / 1e6) ** -0.3


def curve(sd=0.0, seeds=3, rng=None):
    rng = rng or np.random.default_rng(0)
    shared = rng.normal(0, 10 * sd, seeds)
    return {b: {s: law(b) + shared[s] + rng.normal(0, sd) for s in range(seeds)} for b in BUDGETS}


@pytest.mark.parametrize("gain", [-0.3, 0.0, 0.041, 0.5])
def test_an_effect_reads_as_the_tokens_that_it_is_worth(gain):
    effect = law(1e6 * (1 + gain)) - law(1e6)
    reading = Ruler.of(curve()).tokens(effect, (effect, effect), budget=1_000_000)
    assert reading.gain == pytest.approx(gain, abs=0.002)
    assert reading.interval == pytest.approx((gain, gain), abs=0.002)
    assert not reading.note


@pytest.mark.parametrize("gain", [-0.4, 0.1, 0.8])
def test_the_interval_holds_what_the_arm_is_worth(gain):
    """The baseline's runs at the budget are in the effect and on the curve: their error must not count twice. Runs of
    neighbouring budgets have most of their error in common, as trained ones do (docs/verdicts.md)."""
    rng, sd, seeds, held, alike = np.random.default_rng(1), 0.01, 3, [], 0.6
    reach = 1.96 * sd * math.sqrt(2 / seeds)
    for _ in range(600):
        error = [sd * rng.standard_normal(seeds)]
        for _ in BUDGETS[1:]:
            error.append(alike * error[-1] + math.sqrt(1 - alike**2) * sd * rng.standard_normal(seeds))
        shared = rng.normal(0, 0.1, seeds)
        seen = {b: {s: law(b) + shared[s] + e[s] for s in range(seeds)} for b, e in zip(BUDGETS, error, strict=True)}
        arm = law(1e6 * (1 + gain)) + shared + rng.normal(0, sd, seeds)
        effect = float(np.mean(arm) - np.mean(list(seen[1_000_000].values())))
        reading = Ruler.of(seen).tokens(effect, (effect - reach, effect + reach), budget=1_000_000)
        held.append(reading.interval[0] <= gain <= reading.interval[1])
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_a_curve_that_is_less_sure_where_the_reading_is_widens_it():
    sure = Ruler.of(curve())
    spread = np.diag([1e-4 if budget > 1_200_000 else 0.0 for budget in BUDGETS])
    unsure = Ruler(sure.log_tokens, sure.losses, spread, 16.0, "")
    effect = law(1.4e6) - law(1e6)
    a, b = (r.tokens(effect, (effect - 0.02, effect + 0.02), budget=1_000_000).interval for r in (sure, unsure))
    assert b[1] - b[0] > 1.2 * (a[1] - a[0])


def test_what_lies_beyond_the_curve_is_not_read():
    ruler = Ruler.of(curve())
    far = ruler.tokens(-2.0, (-2.1, -1.9), budget=1_000_000)
    assert (far.gain, far.interval) == (None, (None, None))
    assert "beyond the curve, above +300% tokens" in far.note
    half = ruler.tokens(-0.1, (-2.0, 0.1), budget=1_000_000)
    assert half.gain is not None and half.interval[0] is not None and half.interval[1] is None
    assert "the interval goes beyond the curve" in half.note
    with pytest.raises(ValueError, match="not on the baseline's curve, from 250000 to 4000000"):
        ruler.tokens(0.0, (0.0, 0.0), budget=9_000_000)


def test_against_time_a_slower_step_eats_the_gain():
    ruler, effect = Ruler.of(curve()), law(1.1e6) - law(1e6)
    reading = ruler.seconds(effect, (effect, effect), budget=1_000_000, cost=1.1, cost_interval=(1.08, 1.12))
    assert reading.gain == pytest.approx(0.0, abs=0.002)
    assert reading.interval == pytest.approx((1.1 / 1.12 - 1, 1.1 / 1.08 - 1), abs=0.002)


def test_a_reading_is_a_line():
    assert str(Ruler.of(curve()).tokens(0.0, (0.0, 0.0), budget=1_000_000)) == "+0.0% [+0.0%, +0.0%]"


def test_budgets_out_of_order_are_merged_and_told():
    runs = curve()
    runs[BUDGETS[3]], runs[BUDGETS[4]] = runs[BUDGETS[4]], runs[BUDGETS[3]]
    ruler = Ruler.of(runs)
    assert len(ruler.losses) == len(BUDGETS) - 1
    assert np.all(np.diff(ruler.losses) < 0)
    assert "budgets merged" in ruler.tokens(0.0, (0.0, 0.0), budget=1_000_000).note


def test_a_curve_that_tells_nothing_is_refused():
    with pytest.raises(ValueError, match="does not fall"):
        Ruler.of({1000: {1: 2.0, 2: 2.1}, 2000: {1: 2.5, 2: 2.6}})
    with pytest.raises(ValueError, match="two finite losses"):
        Ruler.of({1000: {1: 2.0, 2: math.nan}, 2000: {1: 1.5, 2: 1.6}})
    with pytest.raises(ValueError, match="not within its interval"):
        Ruler.of(curve()).tokens(0.5, (0.0, 0.1), budget=1_000_000)
