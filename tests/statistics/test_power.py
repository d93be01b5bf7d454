"""The effect that a study is said to find is the one that it finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ratrain.statistics.power import detectable, more_seeds, power
from ratrain.statistics.verdict import judge


@pytest.mark.parametrize("prior", [0, 8])
def test_one_look_is_the_noncentral_t(prior):
    delta, n = 1.2, 6
    shift, df = delta * math.sqrt(n), n - 1 + prior
    critical = stats.t.isf(0.025 / 4, df)
    wanted = stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift)
    assert power(delta, 1.0, arms=4, seeds=n, looks=(n,), prior=prior) == pytest.approx(wanted, abs=0.01)


def share_found(effect, sd, *, arms, seeds, studies, documents=0.0, **options):
    """Of simulated studies in which one arm has the effect: those that call it better. Seeds and documents are as
    noisy in every arm, and losses by document tell the variances of seeds almost exactly."""
    rng, found, sizes = np.random.default_rng(2), 0, [10] * 200
    for _ in range(studies):
        shift = rng.normal(0, sd, (arms, seeds, 1)) + documents * math.sqrt(200) * rng.standard_normal((arms, 1, 200))
        inside = sd * rng.standard_normal((arms, seeds, 200))
        parts = np.concatenate([np.zeros((1, seeds, 200)), shift + inside - inside.mean(2, keepdims=True)])
        parts[1] -= effect
        names = [f"a{arm}" for arm in range(arms + 1)]
        told = {name: [tuple(run) for run in of.tolist()] for name, of in zip(names, parts, strict=True)}
        losses = {name: of.mean(1).tolist() for name, of in zip(names, parts, strict=True)}
        judged = judge(losses, "a0", planned=seeds, parts=told, sizes=sizes, **options)["a1"]
        found += judged.word == "better"
    return found / studies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arms", "seeds", "spending"), [(20, 3, "obrien_fleming"), (20, 5, "pocock"), (1, 6, "linear")]
)
def test_verdicts_find_the_detectable_effect_four_times_in_five(arms, seeds, spending):
    prior = {1: 0, 20: 8}[arms]
    effect = detectable(0.004, arms=arms, seeds=seeds, spending=spending, prior=prior)
    found = share_found(effect, 0.004, arms=arms, seeds=seeds, studies=120, spending=spending)
    assert found == pytest.approx(0.8, abs=0.1)


@pytest.mark.slow
def test_the_noise_of_documents_counts():
    sd, e, arms, seeds = 0.004, 0.002, 10, 4
    effect = detectable(sd, arms=arms, seeds=seeds, evaluation=e, prior=12)
    assert effect > detectable(sd, arms=arms, seeds=seeds, prior=12)
    found = share_found(effect, sd, arms=arms, seeds=seeds, studies=100, documents=e)
    assert found == pytest.approx(0.8, abs=0.1)


def test_no_seed_averages_the_noise_of_documents():
    many = more_seeds(0.004, arms=10, evaluation=1.0, counts=(3, 10))
    assert many[10] > 0.9 * many[3]


def test_more_seeds_find_smaller_effects():
    table = more_seeds(0.004, arms=20)
    assert list(table) == list(range(3, 11))
    assert list(table.values()) == sorted(table.values(), reverse=True)
    assert table[3] > 1.5 * table[10]


def test_two_seeds_find_nothing():
    assert detectable(0.004, arms=3, seeds=2) == math.inf
    assert power(1.0, 0.004, arms=3, seeds=2) == 0
