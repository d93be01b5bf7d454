"""Verdicts on noise whose truth is known."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from bench.compare.verdict import ENOUGH, MATTERS, Change, Verdict, decide, middle

PROCESS, ROUND = 0.005, 0.03  # standard deviations of logarithms: among processes, among rounds


def drawn(chance: random.Random, ratio: float, *, rounds: int = 8, disturbed: float = 0.1) -> Change:
    """A set of processes, in which a share of the rounds is disturbed."""
    own = {name: chance.gauss(0, PROCESS) for name in ("old", "twin", "new")}
    own["new"] += math.log(ratio)

    def cost(of: float) -> float:
        return math.exp(of + chance.gauss(0, ROUND) + (chance.random() < disturbed) * chance.expovariate(4))

    return Change.of({name: [cost(of) for _ in range(rounds)] for name, of in own.items()})


@pytest.fixture(scope="module")
def verdicts():
    chance = random.Random(20)
    ratios = (1.0, 1.05, 1 / 1.05)
    return {ratio: [decide(lambda ratio=ratio: drawn(chance, ratio)) for _ in range(500)] for ratio in ratios}


def test_a_slowdown_of_5_percent_is_caught_and_so_is_its_opposite(verdicts):
    for ratio, word in ((1.05, "slower"), (1 / 1.05, "faster")):
        assert sum(found.word == word for found in verdicts[ratio]) >= 0.95 * len(verdicts[ratio])


def test_no_difference_is_hardly_ever_called_one(verdicts):
    assert sum(found.word in ("slower", "faster") for found in verdicts[1.0]) <= 0.01 * len(verdicts[1.0])


def test_intervals_hold_the_truth_as_often_as_they_say(verdicts):
    for ratio, of in verdicts.items():
        missed = sum(not found.low <= ratio <= found.high for found in of)
        assert stats.binomtest(missed, len(of), 0.01).pvalue > 0.01


def test_a_verdict_is_what_it_comes_to_by_hand():
    sets = iter([Change(0.04, 0.02), Change(0.06, -0.02)])
    found = decide(lambda: next(sets), least=2, most=2)
    # squares: 2 * 0.01^2 / 1.5 + 2 * 0.02^2 / 2, of 3 degrees of freedom
    variance = (2 * 0.01**2 / 1.5 + 2 * 0.02**2 / 2) / 3
    reach = stats.t.ppf(0.995, 3) * math.sqrt(1.5 * variance / 2)
    assert math.log(found.ratio) == pytest.approx(0.05)
    assert math.log(found.high) == pytest.approx(0.05 + reach)
    assert math.log(found.low) == pytest.approx(0.05 - reach)
    assert math.log1p(found.band) == pytest.approx(reach)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "told"),
    [
        (1.05, 1.03, 1.07, "slower"),
        (0.95, 0.93, 0.97, "faster"),
        (1.05, 0.99, 1.11, "cannot tell"),
        (1.015, 1.005, 1.025, "same within 2.5 %"),  # sure, and too little to be called one
        (1.0, 0.98, 1.02, "same within 2.0 %"),
        (1.0, 0.95, 1.05, "cannot tell"),
    ],
)
def test_words(ratio, low, high, told):
    assert str(Verdict(ratio, low, high, band=0.02, sets=5)) == told
    assert MATTERS == 0.02


def test_sets_are_drawn_until_the_band_is_narrow_and_no_further():
    chance = random.Random(1)
    quiet = decide(lambda: Change(chance.gauss(0.05, 0.001), chance.gauss(0, 0.001)), least=5, most=12)
    loud = decide(lambda: Change(chance.gauss(0, 0.1), chance.gauss(0, 0.1)), least=5, most=12)
    assert (quiet.sets, quiet.word) == (5, "slower") and quiet.band < ENOUGH
    assert (loud.sets, loud.word) == (12, "cannot tell")


def test_disturbed_rounds_do_not_count():
    assert middle([1, 1, 1, 1, 1, 1, 50, -3]) == 1
    assert middle([3.0]) == 3
