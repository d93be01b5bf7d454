"""When a mechanism opens: by step, by fraction, by the losses."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from ratrain.config.schema import ActivationSection
from ratrain.recipe.activation import Activation


def activation(total=1000, **keys):
    section = ActivationSection.model_validate_json(json.dumps(keys))
    return Activation(section, total_steps=total)


def course(one, steps, total=1000):
    return [one.s(step, step / total) for step in range(steps)]


def test_at_once_is_open_from_the_first_step_on():
    assert course(activation(), 3) == [1, 1, 1]


@pytest.mark.parametrize("after", [{"steps": 75}, {"fraction": 0.075}])
def test_after_opens_with_the_step_that_follows(after):
    assert course(activation(kind="after", after=after), 100) == [0] * 75 + [1] * 25


@pytest.mark.parametrize("after", [{"steps": 10}, {"fraction": 0.01}])
@pytest.mark.parametrize("over", [{"steps": 20}, {"fraction": 0.02}])
def test_a_ramp_is_a_straight_line_between_its_ends(after, over):
    found = course(activation(kind="ramp", after=after, over=over), 50)
    assert found == pytest.approx([0] * 10 + [i / 20 for i in range(20)] + [1] * 20)


def test_a_ramp_in_steps_needs_no_known_end():
    one = activation(total=None, kind="ramp", after={"steps": 10}, over={"steps": 20})
    assert [one.s(step, 0.3) for step in (9, 10, 20, 30)] == [0, 0, 0.5, 1]


def noisy(slope, noise, count, seed=0):
    draw = random.Random(seed)
    return [6 + slope * at + draw.gauss(0, noise) for at in range(count)]


@pytest.mark.parametrize("rule", ["raw", "detrended"])
def test_the_variance_is_that_of_the_last_losses(rule):
    one = activation(kind="variance", rule=rule, window=40, every=1000, threshold=1e-9, deadline={"fraction": 0.999})
    losses = noisy(-0.02, 0.1, 90)
    for step, loss in enumerate(losses, start=1):
        one.look([loss], step, step / 1000)
    last = np.array(losses[-40:])
    line = np.polyval(np.polyfit(np.arange(40), last, 1), np.arange(40))
    expected = last.var() if rule == "raw" else (last - line).var()
    assert one.variance() == pytest.approx(expected, rel=1e-9)


def opening(losses, *, windows, **keys):
    """The step at which it opens when `losses` come in windows of these lengths."""
    one = activation(kind="variance", **keys)
    step = 0
    while step < len(losses) and one.opened is None:
        ends = [step + windows[step % len(windows)], one.next_look(step) or len(losses)]
        end = min(*ends, len(losses))
        one.look(losses[step:end], end, end / 1000)
        step = end
    return one.opened and one.opened[0]


def test_a_falling_loss_that_varies_little_opens_by_its_trend_and_not_by_itself():
    losses = noisy(-0.01, 0.05, 600)
    keys = {"window": 100, "every": 50, "threshold": 0.02, "deadline": {"fraction": 0.5}}
    assert opening(losses, windows=[10], **keys) == 100  # as soon as the window is full
    assert (
        opening(losses, windows=[10], rule="raw", **keys) == 500
    )  # 0.01^2 x 100^2 / 12 = 0.083: the deadline opens it


def test_it_opens_not_before_it_may():
    losses = noisy(0, 0.01, 600)
    assert opening(losses, windows=[10], after={"steps": 250}) == 250


@pytest.mark.parametrize("windows", [[1], [7], [10], [50], [3, 20, 11], [600]])
def test_the_length_of_a_window_decides_nothing(windows):
    losses = [*noisy(0, 0.5, 240), *noisy(0, 0.05, 300, seed=1)]
    assert opening(losses, windows=windows, deadline={"fraction": 0.9}) == 350


def test_after_an_interruption_it_goes_on_as_if_nothing_had_happened():
    losses = [*noisy(0, 0.5, 240), *noisy(0, 0.05, 300, seed=1)]
    one = activation(kind="variance", deadline={"fraction": 0.9}, over={"steps": 40})
    found = []
    for step, loss in enumerate(losses, start=1):
        if step % 77 == 0:
            state = json.loads(json.dumps(one.state_dict()))
            one = activation(kind="variance", deadline={"fraction": 0.9}, over={"steps": 40})
            one.load_state_dict(state)
        one.look([loss], step, step / 1000)
        found.append(one.s(step, step / 1000))
    assert found[348] == found[349] == 0
    assert found[350:392] == pytest.approx([i / 40 for i in range(1, 41)] + [1, 1])
