"""Where the noise comes from, against planted variances and written-out sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.noise import components, evaluation_noise, pairing


def test_twins_tell_what_each_kind_of_noise_adds():
    rng = np.random.default_rng(0)
    sds = {"ulp": 0.5, "init": 1.3, "order": 1.0}
    twins = {
        kind: (rng.normal(0, 9, (400, 1)) + sd * rng.standard_normal((400, 3))).tolist() for kind, sd in sds.items()
    }
    found = components(twins)
    assert found["ulp"].added == found["ulp"].variance == pytest.approx(0.25, rel=0.1)
    assert found["init"].added == pytest.approx(1.69 - 0.25, rel=0.1)
    assert found["order"].added == pytest.approx(1.0 - 0.25, rel=0.1)
    assert found["init"].df == 800


def test_the_interval_of_a_component_holds_its_variance():
    rng = np.random.default_rng(1)
    groups = rng.standard_normal((1000, 4, 2))
    held = [low <= 1 <= high for g in groups for low, high in [components({"init": g.tolist()})["init"].interval]]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_a_component_is_not_negative_and_needs_two_runs():
    assert components({"ulp": [[0.0, 9.0]], "init": [[1.0, 1.1]]})["init"].added == 0
    with pytest.raises(ValueError, match="ulp: expected a group of two"):
        components({"ulp": [[1.0], [math.nan, 2.0]]})


def test_pairing_is_measured_and_its_interval_holds():
    rng, wanted, found = np.random.default_rng(2), 1 / (1 + 2.0**2), []
    for _ in range(800):
        y = rng.normal(0, 2.0, 5) + rng.standard_normal((8, 5))
        found.append(pairing(y))
    assert np.mean([p.interval[0] <= wanted <= p.interval[1] for p in found]) == pytest.approx(0.95, abs=0.02)
    assert np.median([p.ratio for p in found]) == pytest.approx(wanted, rel=0.25)
    assert all(p.r == 1 - p.ratio for p in found)


def test_seeds_that_say_nothing_buy_nothing():
    y = np.random.default_rng(3).standard_normal((40, 60))
    assert pairing(y).ratio == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="two seeds or more"):
        pairing(y[:, :1])


def test_evaluation_noise_is_that_of_a_ratio_over_documents():
    rng = np.random.default_rng(4)

    def sample(documents=200):
        tokens = rng.integers(20, 2000, documents)
        base = rng.normal(3, 1, documents)
        return [base], [base - 0.01 + rng.normal(0, 0.05, documents)], tokens

    draws = (sample() for _ in range(800))
    means = [float(np.average(arm[0] - base[0], weights=tokens)) for base, arm, tokens in draws]
    told = [evaluation_noise(*sample()).se for _ in range(100)]
    assert np.mean(told) == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize("of_documents", [0.0, 0.05])
def test_what_seeds_show_already_is_not_counted_again(of_documents):
    rng, seeds, documents = np.random.default_rng(5), 3, 100
    tokens, found = rng.integers(20, 2000, documents), []
    weight = tokens / tokens.sum()
    for _ in range(400):
        own = of_documents * rng.standard_normal(documents)
        d = 0.1 * rng.standard_normal((seeds, 1)) + own + 0.08 * rng.standard_normal((seeds, documents))
        found.append(evaluation_noise(np.zeros_like(d), d, tokens).se ** 2)
    truth = of_documents**2 * float((weight**2).sum())
    floor = 0.08**2 * float((weight**2).sum()) / seeds  # of what seeds show; what is below zero is cut off
    assert np.mean(found) == pytest.approx(truth, abs=0.1 * floor if of_documents else 0.15 * floor)


def test_the_interaction_is_the_variance_that_documents_add_to_the_difference_of_one_seed():
    rng, documents = np.random.default_rng(6), 60
    d = rng.standard_normal((4, 1)) + rng.standard_normal(documents) + 0.3 * rng.standard_normal((4, documents))
    base, tokens = np.zeros_like(d), [32] * documents
    assert evaluation_noise(base, d, tokens).interaction == pytest.approx(0.3**2 / documents, rel=0.2)
    assert math.isnan(evaluation_noise(base[:1], d[:1], tokens).interaction)


def test_documents_that_agree_leave_no_noise():
    assert evaluation_noise([[1.0, 2.0, 3.0]], [[1.5, 2.5, 3.5]], [10, 20, 30]).se == pytest.approx(0)
    with pytest.raises(ValueError, match="as many losses as documents"):
        evaluation_noise([[1.0, 2.0]], [[1.0, 2.0]], [10])
