"""The baseline's curve at a rung of a ladder, against losses of a known form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.budget_curve import BudgetCurve

SLOPE, RULER = 0.4, (0.7, 1.0, 1.4)
BENDS = (-0.7, 0.0, 0.3, 1.2)


def loss(bend: float, budget: float) -> float:
    """The loss at a budget in parts of the rung's."""
    return 3 - SLOPE * math.log(budget) if bend == 0 else 3 + SLOPE / bend * budget**-bend


def losses(bend: float, rng: np.random.Generator | None = None, sd: float = 0.004, seeds: int = 4, ruler=RULER) -> dict:
    """The baseline's losses by budget and seed; exact without a generator. Errors of neighbouring budgets correlate by
    0.6, as measured (docs/verdicts.md)."""
    count = len(ruler)
    root = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(range(count), range(count))))
    common = rng.normal(0, 0.01, seeds) if rng else np.zeros(seeds)
    noise = root @ rng.normal(0, sd, (count, seeds)) if rng else np.zeros((count, seeds))
    return {b: {s: loss(bend, b) + common[s] + of[s] for s in range(seeds)} for b, of in zip(ruler, noise, strict=True)}


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.0, 1.05, 1.3, 1.6])
@pytest.mark.parametrize("bend", BENDS)
def test_a_loss_is_read_as_the_tokens_that_give_it(bend, factor):
    exact, effect, step = BudgetCurve.of(losses(bend)), loss(bend, factor) - loss(bend, 1.0), 1e-4
    gain, further = exact.gain(effect), exact.gain(effect + step)
    assert gain
    assert further
    assert math.exp(gain.value) == pytest.approx(factor, abs=0.002)
    assert (further.value - gain.value) / step == pytest.approx(gain.per_nat, rel=1e-3)


@pytest.mark.parametrize("bend", BENDS)
def test_the_curve_and_its_reading_are_each_others_inverse(bend):
    curve = BudgetCurve.of(losses(bend, np.random.default_rng(0)))
    for at in (-0.3, 0.1, 0.4):
        gain = curve.gain(float(curve.loss(np.array(at))))
        assert gain
        assert gain.value == pytest.approx(at, abs=0.02)


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.3])
@pytest.mark.parametrize("bend", BENDS)
def test_intervals_of_readings_hold_the_true_gain(bend, factor):
    rng, effect, inside = np.random.default_rng(1), loss(bend, factor) - loss(bend, 1.0), []
    for _ in range(300):
        gain = BudgetCurve.of(losses(bend, rng, 0.006, seeds=6)).gain(effect)
        inside.append(gain is not None and abs(gain.value - math.log(factor)) < 1.645 * gain.curve_sd)
    assert np.mean(inside) == pytest.approx(0.9, abs=3 * (0.09 / 300) ** 0.5)


def test_a_curve_of_another_form_widens_the_error():
    ruler = (0.5, 0.7, 1.0, 1.4, 2.0)
    straight = losses(0.3, np.random.default_rng(2), ruler=ruler)
    bent = {b: {s: value + 0.05 * (b in (0.7, 1.4)) for s, value in of.items()} for b, of in straight.items()}
    one, other = (BudgetCurve.of(of).gain(-0.03) for of in (straight, bent))
    assert one
    assert other
    assert other.curve_sd > 2 * one.curve_sd


def test_a_loss_far_off_the_ruler_or_below_the_floor_is_not_read():
    curve = BudgetCurve.of(losses(1.2))
    assert curve.gain(loss(1.2, 2.5) - loss(1.2, 1.0)) is None
    assert curve.gain(loss(1.2, 0.4) - loss(1.2, 1.0)) is None
    assert curve.gain(-SLOPE / 1.2 - 0.1) is None
    early = BudgetCurve.of(losses(-0.7))  # whose loss is finite before the first step
    assert early.gain(SLOPE / 0.7 + 0.1) is None


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({1.0: {1: 3.0, 2: 3.0}, 1.4: {1: 2.9, 2: 2.9}}, "2 budgets"),
        ({b: dict.fromkeys((1, int(10 * b)), 3.0) for b in RULER}, "1 seeds"),
        ({b: dict.fromkeys(range(4), 3 + b) for b in RULER}, "does not fall"),
        ({}, "0 budgets"),
    ],
)
def test_losses_without_a_curve_are_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        BudgetCurve.of(losses)
