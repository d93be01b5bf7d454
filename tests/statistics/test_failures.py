"""The simulated cluster against arithmetic, against the expectation in closed form, and against Daly's interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.failures import Cluster, Work, best_interval, simulate


def times(works, cluster, draws=1, seed=0):
    rng = np.random.default_rng(seed)
    return [simulate(works, cluster, rng) for _ in range(draws)]


@pytest.mark.parametrize(
    ("works", "cluster", "finish", "spent"),
    [
        ([Work(10.0)] * 7, Cluster(1, 2), 40.0, 70.0),
        ([Work(10.0, gpus=4)] * 3, Cluster(2, 4), 20.0, 120.0),
        ([Work(10.0, gpus=3), Work(5.0, gpus=1), Work(5.0, gpus=3)], Cluster(1, 4), 15.0, 50.0),
        ([Work(10.0, gpus=16)], Cluster(2, 8), 10.0, 160.0),
        ([Work(10.0, interval=3.0, save=0.5, restart=1.0)], Cluster(1, 1), 12.5, 12.5),  # no save after the last part
    ],
)
def test_without_failures_it_is_arithmetic(works, cluster, finish, spent):
    (found,) = times(works, cluster)
    assert (found.finish, found.spent, found.lost, found.failures) == (finish, spent, 0.0, 0)


def test_the_mean_time_of_a_run_is_the_expectation():
    """A part of w seconds after a start of r seconds, failures at rate a: e^(ar) (e^(aw) - 1) / a on average, the start
    being part of every attempt (Daly 2006, eq. 13); the first start alone does not belong to a part."""
    interval, save, restart, mtbf, parts = 10.0, 1.0, 2.0, 30.0, 20
    work = Work(interval * parts, interval=interval, save=save, restart=restart)
    found = np.array([outcome.finish for outcome in times([work], Cluster(1, 1, mtbf), draws=4000)])
    rate = 1 / mtbf

    def expected(length, *, begun):
        again = math.exp(rate * restart) * (math.exp(rate * length) - 1) / rate
        # a part that follows another needs no start at first: of its first attempt only the part itself
        first = (1 - math.exp(-rate * length)) / rate
        return (
            again
            if not begun
            else first + (1 - math.exp(-rate * length)) * ((math.exp(rate * (restart + length)) - 1) / rate)
        )

    begin = (math.exp(rate * (restart + interval + save)) - 1) / rate
    middle = (parts - 2) * expected(interval + save, begun=True)
    total = begin + middle + expected(interval, begun=True)
    assert found.mean() == pytest.approx(total, abs=4 * found.std() / len(found) ** 0.5)


def test_what_is_lost_and_spent_adds_up():
    works = [Work(100.0, gpus=2, interval=20.0, save=1.0, restart=3.0)] * 9
    outcomes = times(works, Cluster(2, 4, mtbf=150.0, repair=10.0), draws=50)
    assert sum(outcome.failures for outcome in outcomes) > 100
    for outcome in outcomes:
        useful = 9 * 2 * (100.0 + 4 * 1.0)
        starts = outcome.spent - outcome.lost - useful
        assert starts <= 9 * 2 * 3.0 + 1e-6  # starts of attempts that failed are lost
        assert outcome.spent >= useful


def test_dalys_interval_loses_less_than_others():
    save, mtbf = 20.0, 3600.0
    best = best_interval(save, mtbf)
    assert best == pytest.approx(math.sqrt(2 * save * mtbf), rel=0.1)

    def mean(interval):
        work = Work(86_400.0, interval=interval, save=save, restart=60.0)
        return np.mean([outcome.finish for outcome in times([work], Cluster(1, 1, mtbf), draws=200)])

    assert mean(best) < min(mean(best / 4), mean(best * 4))


def test_a_machine_that_never_fails_needs_no_checkpoint():
    assert best_interval(20.0, math.inf) == math.inf
    assert best_interval(0.0, 3600.0) == math.inf


def test_a_run_larger_than_the_cluster_is_refused():
    with pytest.raises(ValueError, match="needs 3 machines of 8, there are 2"):
        times([Work(1.0, gpus=20)], Cluster(2, 8))
