"""When how much is pruned, against spec/optimizers_pruning.md 7.1 and 7.3."""

from __future__ import annotations

import pytest

from ratrain.config.schema import PruneSection, Span
from ratrain.recipe.prune.schedule import PruneSchedule, apportion, shares

TOTAL = 10_000


def schedule(kind="linear", *, start=1000, end=TOTAL, target=0.5, total=TOTAL, every=50):
    section = PruneSection(
        kind="magnitude", target=target, schedule=kind, start=Span(steps=start), end=Span(steps=end), every=every
    )
    return PruneSchedule(section, total_steps=total)


# the reference's own table: where its masks stood after its last look, which came before the ramp's end
@pytest.mark.parametrize(
    ("kind", "start", "step", "expected"),
    [
        ("linear", 100, 9950, 0.4975),
        ("linear", 1000, 9950, 0.4972),
        ("cubic_late", 100, 9950, 0.4925),
        ("cubic_late", 1000, 9950, 0.4917),
        ("cubic_late", 100, 7000, 0.169),
        ("cubic_late", 1000, 7000, 0.148),
        ("cubic_late", 100, 2500, 0.007),
        ("cubic_late", 1000, 2500, 0.002),
        ("cubic_early", 1000, 5500, 0.4375),  # 0.5 x (1 - 0.5^3)
    ],
)
def test_the_ramps_are_those_of_the_table(kind, start, step, expected):
    digits = 3 if expected < 0.4 else 4
    assert round(schedule(kind, start=start).sparsity(step, 0.0), digits) == expected


@pytest.mark.parametrize("kind", ["linear", "cubic_late", "cubic_early"])
def test_the_last_look_comes_at_the_end_of_the_ramp_and_asks_for_the_target(kind):
    ramp = schedule(kind, start=101, end=777, target=0.7, total=1000)
    looks, reached = [], False
    for step in range(1, 1001):
        if ramp.due(step, step / 1000, reached):
            looks.append(step)
            reached = ramp.progress(step, step / 1000) >= 1
    assert looks == [*range(150, 777, 50), 777]
    assert ramp.sparsity(777, 0.0) == ramp.sparsity(1000, 0.0) == 0.7


def test_a_budget_in_seconds_is_followed_by_the_fraction_that_is_spent():
    section = PruneSection(kind="magnitude", target=0.8, schedule="linear")  # from 0.1 to 0.8 of the budget
    ramp = PruneSchedule(section, total_steps=None)
    assert [ramp.sparsity(7, spent) for spent in (0.0, 0.1, 0.45, 0.8, 1.0)] == pytest.approx([0, 0, 0.4, 0.8, 0.8])
    assert ramp.due(7, 0.81, reached=False)
    assert not ramp.due(7, 0.81, reached=True)


SIZES = [49152, 16384, 65536, 65536] * 2 + [262144]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["uniform", "depth"])
def test_shares_add_up_to_the_whole(kind, sparsity):
    found = shares(kind, SIZES, sparsity)
    assert sum(s * n for s, n in zip(found, SIZES, strict=True)) == pytest.approx(sparsity * sum(SIZES), abs=1e-6)
    assert max(found) <= max(0.95, sparsity) + 1e-12


def test_shares_by_depth_rise_from_seven_to_thirteen_tenths():
    found = shares("depth", SIZES, 0.3)
    assert found == sorted(found)
    assert found[-1] / found[0] == pytest.approx(1.3 / 0.7)


def test_counts_are_whole_add_up_and_never_fall():
    counts = [0] * len(SIZES)
    for step in range(1, 200):
        sparsity = 0.9 * step / 199
        wanted = [s * n for s, n in zip(shares("depth", SIZES, sparsity), SIZES, strict=True)]
        before, counts = counts, apportion(counts, wanted, int(sparsity * sum(SIZES)))
        assert sum(counts) == int(sparsity * sum(SIZES))
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        assert all(abs(c - w) <= 1 for c, w in zip(counts, wanted, strict=True))
