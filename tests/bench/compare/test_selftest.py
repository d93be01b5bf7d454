"""The self-test of the bench: the slowdown it injects is real, and it counts right."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

from bench.compare import selftest
from bench.compare.selftest import share_of, slowed, trial


def test_a_slowed_step_burns_what_it_says():
    def cost(step):
        start = time.process_time()
        step()
        return time.process_time() - start

    taken = []

    def step():
        taken.append(cost(lambda: sum(range(200_000))))

    burning = slowed(step, 0.05)
    ratios = sorted(cost(burning) / taken[-1] for _ in range(30))
    assert 1.049 < ratios[15] < 1.08


def test_a_trial_tells_equal_from_slowed():
    chance = random.Random(5)

    def arm(cost):
        return SimpleNamespace(step=lambda: cost * chance.lognormvariate(0, 0.01))

    plain, slow = [arm(1.0) for _ in range(6)], [arm(1.05) for _ in range(3)]
    trials = [trial(plain, slow, chance) for _ in range(30)]
    assert {found["slowed"].word for found in trials} == {"slower"}
    assert {found["equal"].word for found in trials} == {"same"}


def test_shares_have_their_interval():
    assert share_of(0, 100) == "0 of 100: 0.0 % [0.0, 3.6]"
    assert share_of(200, 200) == "200 of 200: 100.0 % [98.2, 100.0]"


def test_demands_are_those_of_the_issue():
    assert (selftest.SLOWDOWN, selftest.DETECTED, selftest.ALARMS) == (0.05, 0.95, 0.01)
