"""What a ladder concludes from losses of a known truth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from ratrain.ablation.ladder.conclusion import _same, _word, conclude_ladder, predict
from ratrain.ablation.ladder.readings import RungLosses, _evaluation, read_gains
from ratrain.statistics.paired import Table, effects

FLOPS, SLOPES, BEND, SEEDS = (1.7e10, 1e11, 7e11, 4e12), (0.45, 0.5, 0.55, 0.5), 0.5, (6, 5, 4, 3)
ARMS = {
    "null": (1, 1, 1, 1), "more": (1.2, 1.2, 1.2, 1.2), "less": (0.85, 0.85, 0.85, 0.85),
    "shrinking": (1.3, 1.24, 1.18, 1.12), "vanishing": (1.3, 1.2, 1.1, 1.0), "growing": (1.02, 1.1, 1.2, 1.3),
    "late": (0.8, 0.87, 0.94, 1.0), "turning": (1.3, 1.124, 0.97, 0.84),
}  # fmt: skip


def loss(rung: int, budget: float) -> float:
    return 3 + SLOPES[rung] / BEND * budget**-BEND


def rungs(seed: int, arms: dict = ARMS, sd: float = 0.003, counts: tuple = SEEDS) -> list[RungLosses]:
    """Rungs whose runs share a seed's noise, with arms that are worth so many times the tokens."""
    rng, found = np.random.default_rng(seed), []
    for k, seeds in enumerate(counts):
        common = rng.normal(0, 0.01, seeds)

        def runs(budget: float, k=k, common=common) -> list[float]:
            return list(loss(k, budget) + common + rng.normal(0, sd, len(common)))

        losses = {"v0": runs(1.0)} | {name: runs(worth[k]) for name, worth in arms.items()}
        curve = {1.0: losses["v0"], 0.7: runs(0.7), 1.4: runs(1.4)}
        table = Table.of(losses, "v0")
        found.append(RungLosses(k + 1, FLOPS[k], table, {b: dict(enumerate(of)) for b, of in curve.items()}))
    return found


def concluded(seed: int, **options):
    return conclude_ladder(rungs(seed, **options), alpha=0.05, delta=0.01)


def test_each_arm_gets_the_word_of_its_truth():
    words = {name: Counter() for name in ARMS}
    for seed in range(12):
        for name, outlook in concluded(seed).outlooks.items():
            words[name][outlook.word] += 1
    usual = {name: of.most_common(1)[0] for name, of in words.items()}
    wanted = {
        "more": "gain holds", "less": "loss holds", "shrinking": "gain shrinks", "vanishing": "gain vanishes",
        "growing": "gain grows", "late": "loss vanishes", "turning": "gain turns into loss",
    }  # fmt: skip
    assert {name: usual[name][0] for name in wanted} == wanted
    assert all(usual[name][1] >= 10 for name in wanted), words
    assert set(words["null"]) <= {"inconclusive", "no difference"}


def test_arms_without_an_effect_are_seldom_said_to_have_one():
    arms = {f"null {number}": (1, 1, 1, 1) for number in range(4)}
    claims = [
        outlook.word not in ("inconclusive", "no difference")
        for seed in range(60)
        for outlook in concluded(seed, arms=arms).outlooks.values()
    ]
    assert np.mean(claims) <= 0.05 / 4 + 2 * (0.0125 / len(claims)) ** 0.5


@pytest.mark.parametrize("seed", range(3))
def test_one_arm_of_three_seeds_is_held_to_the_same_level(seed):
    """Two degrees of freedom and no other arm that shows how rungs deviate from a line."""
    counts, claims = (3, 3, 3, 3), []
    for draw in range(40):
        found = conclude_ladder(
            rungs(1000 * seed + draw, {"null": (1, 1, 1, 1)}, counts=counts), alpha=0.05, delta=None
        )
        claims.append(found.outlooks["null"].word != "inconclusive")
    assert np.mean(claims) <= 0.05 + 2 * (0.05 * 0.95 / len(claims)) ** 0.5


def test_delta_is_narrower_in_tokens_on_the_side_of_a_loss():
    """A loss's tokens are saved by fewer, since the curve is steeper there."""
    of, narrow = rungs(0, {"same": (1, 1, 1, 1), "other": (1.1, 1.1, 1.1, 1.1)}, sd=0.0002), []
    for delta in (0.01, 0.05, 0.1):
        same = _same(read_gains(of), delta)
        assert same
        worse, better = same
        assert worse < 0 < better
        assert worse + better > 0
        narrow.append(worse + better)
        assert loss(3, math.exp(better)) == pytest.approx(loss(3, 1.0) - delta, abs=2e-3)
        assert loss(3, math.exp(worse)) == pytest.approx(loss(3, 1.0) + delta, abs=2e-3)
    assert narrow == sorted(narrow)


def test_an_arm_surely_within_delta_makes_no_difference():
    found = concluded(0, arms={"same": (1, 1, 1, 1), "other": (1.1, 1.1, 1.1, 1.1)}, sd=0.0003)
    assert found.outlooks["same"].word == "no difference"
    # a sure difference that does not matter is none
    found = concluded(0, arms={"near": (1.01, 1.01, 1.01, 1.01), "other": (1.1, 1.1, 1.1, 1.1)}, sd=0.0001)
    assert found.outlooks["near"].last_interval[0] > 0
    assert found.outlooks["near"].word == "no difference"


def test_the_held_out_rung_is_mostly_inside_its_interval():
    held = [outlook.held_out for seed in range(25) for outlook in concluded(seed).outlooks.values()]
    assert 0.83 < np.mean([of.inside for of in held if of]) < 0.99


def test_gains_are_those_of_the_tokens():
    found = concluded(1, sd=1e-4)
    for name, worth in ARMS.items():
        for of, truth in zip(found.readings.by_rung, worth, strict=True):
            assert math.exp(of[name].gain or 0.0) == pytest.approx(truth, abs=0.006)
    assert found.outlooks["vanishing"].vanishes == pytest.approx(4e12, rel=0.2)


@pytest.mark.parametrize(
    ("slope", "now", "then", "before", "word"),
    [
        ((-0.056, -0.030), (0.05, 0.07), (0.0, 0.06), (0.13, 0.17), "gain shrinks"),
        ((-0.08, -0.04), (-0.01, 0.05), (-0.05, 0.05), (0.13, 0.17), "gain vanishes"),
        ((-0.08, -0.04), (-0.05, -0.01), (-0.09, -0.01), (0.13, 0.17), "gain turns into loss"),
        ((-0.01, 0.01), (0.01, 0.05), (-0.01, 0.05), (0.13, 0.17), "no difference"),  # no sure slope
        ((-0.02, -0.01), (0.01, 0.02), (0.01, 0.02), (0.03, 0.05), "no difference"),  # never beyond delta
        ((-0.01, 0.01), (0.01, 0.12), (0.01, 0.12), (0.01, 0.12), "gain holds"),
    ],
)
def test_a_gain_that_falls_within_delta_is_said_to_fall(slope, now, then, before, word):
    assert _word(slope, now, then, before, (-0.1, 0.1)) == word


def test_a_gain_that_only_the_last_rung_shows_is_a_gain():
    """Such a rung is far off any line through the others, but it was measured."""
    found = concluded(4, arms={"sudden": (1.01, 1.0, 1.03, 1.35), "null": (1, 1, 1, 1), "more": (1.1,) * 4})
    assert found.outlooks["sudden"].word.startswith("gain")
    assert found.outlooks["sudden"].last == pytest.approx(math.log(1.35), abs=0.03)


def test_pairs_are_counted_that_a_rung_orders_as_the_last_does():
    arms = {"a": (1.2, 1.1, 1.0, 0.9), "b": (1.0, 1.0, 1.05, 1.1), "c": (0.9, 1.2, 0.8, 1.2), "d": (1.1, 1.3, 1.2, 1.3)}
    found = concluded(2, sd=1e-5, arms=arms)
    for k, (alike, pairs) in enumerate(found.agreement):
        by_hand = [(a[k] - b[k]) * (a[3] - b[3]) > 0 for a, b in combinations(arms.values(), 2)]
        assert (alike, pairs) == (sum(by_hand), 6)
    planted = conclude_ladder(rungs(2, arms, sd=1e-5), alpha=0.05, delta=0.01, planted=("a",))
    assert [pairs for _, pairs in planted.agreement] == [3, 3, 3]


def test_equal_gains_are_no_pair():
    of = rungs(2, {"a": (1.2, 1.1, 1.0, 0.9), "b": (1.0, 1.0, 1.05, 1.1)})
    same = changed(of, 1, {"b": list(of[1].table.losses[of[1].table.names.index("a")])})
    assert [pairs for _, pairs in conclude_ladder(same, alpha=0.05, delta=0.01).agreement] == [1, 0, 1]


def test_the_error_of_the_documents_is_shared_by_rungs_with_the_same_ones():
    """Against the covariance over other documents, drawn anew."""
    rng, sizes = np.random.default_rng(0), np.full(200, 10.0)
    shared, own = rng.normal(0, 0.1, 200), rng.normal(0, 0.05, (2, 200))

    def rung(effects: np.ndarray, windows: str = "w") -> RungLosses:
        runs = {"v0": np.zeros((3, 200)), "a": effects + rng.normal(0, 0.001, (3, 200))}
        table = Table.of({name: list(of.mean(1)) for name, of in runs.items()}, "v0", runs, sizes)  # type: ignore[arg-type]
        return RungLosses(1, 1e9, table, {}, windows)

    of = [rung(shared + own[0]), rung(shared + own[1])]
    found = [effects(one.table)[0] for one in of]
    told = _evaluation(of, found, "a")
    drawn = [(shared + own)[:, rng.integers(0, 200, 200)].mean(1) for _ in range(4000)]
    assert told == pytest.approx(np.cov(np.array(drawn).T), rel=0.1)
    others = _evaluation([of[0], replace(of[1], windows="other")], found, "a")
    assert others == pytest.approx(np.diag(told.diagonal()))


def test_nothing_is_predicted_far_beyond_the_last_rung():
    found = concluded(3)
    assert found.next_flops == pytest.approx(4e12 * 4e12 / 7e11)
    ahead = predict(found, "more", 4e13, last=4e12)
    assert ahead.interval[0] < math.log(1.2) < ahead.interval[1]
    with pytest.raises(ValueError, match="more than 10 x the last rung"):
        predict(found, "more", 4.1e13, last=4e12)


def changed(of: list[RungLosses], k: int, losses: dict) -> list[RungLosses]:
    old = of[k]
    told = {name: list(row) for name, row in zip(old.table.names, old.table.losses, strict=True)}
    table = Table.of({name: row for name, row in (told | losses).items() if row}, "v0")
    return [*of[:k], RungLosses(old.number, old.flops, table, old.curve), *of[k + 1 :]]


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([], "not run at rung 3"),
        ([3.9, math.nan, 3.9, 3.9], "1 run diverged at rung 3"),
        ([3.9, 3.9], "2 seeds at rung 3; expected 3 or more"),
        ([4.9, 4.9, 4.9, 4.9], "so much worse at rung 3"),
    ],
)
def test_an_arm_without_a_trend_has_its_reason(losses, why):
    found = conclude_ladder(changed(rungs(0), 2, {"more": losses}), alpha=0.05, delta=None)
    assert why in found.without["more"]
    assert "more" not in found.outlooks
    assert "less" in found.outlooks


def test_without_an_arm_that_has_a_trend_the_reasons_are_told():
    arms = {"far": (1, 1, 1, 1)}
    found = conclude_ladder(changed(rungs(0, arms), 2, {"far": [4.9] * 4}), alpha=0.05, delta=None)
    assert found.outlooks == {}
    assert "so much worse" in found.without["far"]


def test_an_arm_whose_runs_all_diverged_has_that_reason():
    found = conclude_ladder(changed(rungs(0), 2, {"more": [math.nan] * 4}), alpha=0.05, delta=None)
    assert found.without["more"] == "4 runs diverged at rung 3"


def test_three_rungs_are_refused():
    with pytest.raises(ValueError, match="3 rungs are done; a trend needs 4"):
        conclude_ladder(rungs(0)[:3], alpha=0.05, delta=None)
