"""The effect that a study is said to find is the one that it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ratrain.ablation.noise import EvaluationNoise
from ratrain.ablation.power import detectable, more_seeds, power
from ratrain.ablation.verdict import judge


def test_one_arm_and_one_look_are_the_noncentral_t():
    delta, n = 1.7, 6
    shift, critical = delta * math.sqrt(n / 2), stats.t.isf(0.025, n - 1)
    wanted = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power(delta, 1.0, arms=1, seeds=n, looks=(n,)) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize(
    ("arms", "seeds", "spending"), [(20, 3, "obrien_fleming"), (20, 5, "pocock"), (1, 6, "pocock")]
)
def test_verdicts_find_the_detectable_effect_four_times_in_five(arms, seeds, spending):
    sd, rng, studies = 0.004, np.random.default_rng(2), 600
    effect = detectable(sd, arms=arms, seeds=seeds, spending=spending)
    found = 0
    for _ in range(studies):
        y = 3 + rng.normal(0, 0.02, seeds) + rng.normal(0, sd, (arms + 1, seeds))
        y[1] -= effect
        losses = {f"a{arm}": row for arm, row in enumerate(y.tolist())}
        found += judge(losses, "a0", planned=seeds, spending=spending)["a1"].word == "better"
    assert found / studies == pytest.approx(0.8, abs=0.05)


def test_the_noise_of_documents_counts_and_no_seed_averages_it():
    sd, e, rng, studies, arms, seeds = 0.004, 0.002, np.random.default_rng(3), 400, 10, 4
    effect = detectable(sd, arms=arms, seeds=seeds, evaluation=e)
    assert effect > detectable(sd, arms=arms, seeds=seeds)
    noise = {f"a{arm}": EvaluationNoise(e, 1000) for arm in range(1, arms + 1)}
    found = 0
    for _ in range(studies):
        y = 3 + rng.normal(0, 0.02, seeds) + rng.normal(0, sd, (arms + 1, seeds))
        y[1] -= effect
        losses = {f"a{arm}": row for arm, row in enumerate(y.tolist())}
        found += judge(losses, "a0", planned=seeds, noise=noise)["a1"].word == "better"
    assert found / studies == pytest.approx(0.8, abs=0.05)
    many = more_seeds(sd, arms=arms, evaluation=1.0, counts=(3, 10))
    assert many[10] > 0.9 * many[3]


def test_more_seeds_find_smaller_effects():
    table = more_seeds(0.004, arms=20)
    assert list(table) == list(range(3, 11))
    assert list(table.values()) == sorted(table.values(), reverse=True)
    assert table[3] > 1.5 * table[10]


def test_two_seeds_find_nothing():
    assert detectable(0.004, arms=3, seeds=2) == math.inf
    assert power(1.0, 0.004, arms=3, seeds=2) == 0
