"""The effect that a study is said to find is the one that it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ratrain.statistics.noise import EvaluationNoise
from ratrain.statistics.power import detectable, more_seeds, power
from ratrain.statistics.verdict import judge


def test_one_arm_and_one_look_are_the_noncentral_t():
    delta, n = 1.7, 6
    shift, critical = delta * math.sqrt(n / 2), stats.t.isf(0.025, n - 1)
    wanted = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power(delta, 1.0, arms=1, seeds=n, looks=(n,)) == pytest.approx(wanted, abs=0.01)


def share_found(effect, sd, *, arms, seeds, studies, **options):
    """Of simulated studies in which one arm has the effect: those that call it better."""
    rng, found = np.random.default_rng(2), 0
    for _ in range(studies):
        y = 3 + rng.normal(0, 0.02, seeds) + rng.normal(0, sd, (arms + 1, seeds))
        y[1] -= effect
        losses = {f"a{arm}": row for arm, row in enumerate(y.tolist())}
        found += judge(losses, "a0", planned=seeds, **options)["a1"].word == "better"
    return found / studies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arms", "seeds", "spending"), [(20, 3, "obrien_fleming"), (20, 5, "pocock"), (1, 6, "pocock")]
)
def test_verdicts_find_the_detectable_effect_four_times_in_five(arms, seeds, spending):
    effect = detectable(0.004, arms=arms, seeds=seeds, spending=spending)
    found = share_found(effect, 0.004, arms=arms, seeds=seeds, studies=600, spending=spending)
    assert found == pytest.approx(0.8, abs=0.05)


def test_the_noise_of_documents_counts_and_no_seed_averages_it():
    sd, e, arms, seeds = 0.004, 0.002, 10, 4
    effect = detectable(sd, arms=arms, seeds=seeds, evaluation=e)
    assert effect > detectable(sd, arms=arms, seeds=seeds)
    noise = {f"a{arm}": EvaluationNoise(e, 1000) for arm in range(1, arms + 1)}
    found = share_found(effect, sd, arms=arms, seeds=seeds, studies=400, noise=noise)
    assert found == pytest.approx(0.8, abs=0.05)
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
