"""Every score, written out for nine weights in float64."""

from __future__ import annotations

import math

import pytest
import torch

from ratrain.recipe.prune.scores import STATE, Moments, add_movement, magnitude

W = torch.tensor([[0.5, -0.3, 2.0], [-1.0, 0.01, 0.7], [1e-3, -2.5, 0.25]], dtype=torch.float64)
M = torch.tensor([[0.2, 0.1, -0.05], [-0.3, 1e-6, 0.0], [4.0, -0.02, 0.3]], dtype=torch.float64)
V = torch.tensor([[0.04, 0.5, 1e-12], [0.09, 1e-10, 0.2], [9.0, 1e-4, 0.3]], dtype=torch.float64)
STEP, BETA = 7, 0.9


def sign(x):
    return (x > 0) - (x < 0)


def away(w, m, v):
    return -sign(w) * m / math.sqrt(v)


FORMULAS = {
    "bitter0": lambda w, m, v: w * w * abs(m) / math.sqrt(v),
    "bitter1": lambda w, m, v: abs(w),
    "bitter2": lambda w, m, v: abs(w),
    "bitter3": lambda w, m, v: abs(w) * math.sqrt(abs(m)),
    "bitter4": lambda w, m, v: abs(w) * math.sqrt(abs(m)),
    "bitter5": lambda w, m, v: away(w, m, v) + 0.1 * abs(w),
    "bitter6": lambda w, m, v: abs(w) * math.sqrt(abs(m)) * math.sqrt(m * m / v),
    "bitter7": lambda w, m, v: abs(w) * v**0.25,
    "bitter8": lambda w, m, v: abs(w) * math.sqrt(abs(m / (1 - BETA**STEP))),
    "bitter9": lambda w, m, v: abs(w) * math.sqrt(abs(m)) + 0.1 * away(w, m, v),
}


def moments():
    return Moments(M, V, torch.tensor(1 - BETA**STEP, dtype=torch.float64))


@pytest.mark.parametrize("name", STATE)
def test_a_score_is_its_formula(name):
    expected = [FORMULAS[name](*numbers) for numbers in zip(*(x.flatten().tolist() for x in (W, M, V)), strict=True)]
    torch.testing.assert_close(STATE[name](W, moments()).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_bitter3_and_bitter8_rank_alike_where_all_took_the_same_steps():
    ranks = [STATE[name](W, moments()).flatten().argsort() for name in ("bitter3", "bitter8")]
    assert torch.equal(*ranks)


def test_what_adam_moves_to_zero_scores_lower_than_what_it_moves_away():
    w, v = torch.tensor([1.0, 1.0]), torch.ones(2)
    toward, off = STATE["bitter5"](w, Moments(torch.tensor([0.5, -0.5]), v, torch.ones(())))
    assert toward < 0 < off


@pytest.mark.parametrize("name", STATE)
def test_weights_that_never_had_a_gradient_score_a_number(name):
    nothing = torch.zeros(3)
    scores = STATE[name](torch.tensor([0.1, -0.2, 0.0]), Moments(nothing, nothing, torch.ones(())))
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ["bitter6", "bitter7"])
def test_ranks_do_not_depend_on_the_scale_of_the_gradients(name):
    small = 1e-8  # as they are under a clipped norm over 1e8 weights, where the reference's 1e-8 outweighs v
    plain, scaled = (STATE[name](W, Moments(M * s, V * s * s, torch.ones(()))).flatten().argsort() for s in (1, small))
    assert torch.equal(plain, scaled)


def test_magnitude_is_the_absolute_value():
    assert torch.equal(magnitude(W), W.abs())


def test_movement_sums_what_the_loss_would_lose_and_a_skipped_step_adds_nothing():
    score, gradient = torch.zeros(2), torch.tensor([0.5, -1.0])
    w, one = torch.tensor([2.0, 3.0]), torch.ones(())
    add_movement(score, w, gradient, one, 0 * one)
    add_movement(score, w, gradient, 2 * one, 0 * one)
    assert score.tolist() == [-1.5, 4.5]
    add_movement(score, w, gradient * torch.nan, one, one)
    assert score.tolist() == [-1.5, 4.5]
