"""Effects as means of paired differences, and their errors against Student's paired t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from ratrain.statistics.paired import Table, effects


def study(arms, seeds, *, seed=0, sd=1.0):
    """Losses of arms without effects; the seeds differ by much more than the residuals."""
    rng = np.random.default_rng(seed)
    sds = np.broadcast_to(sd, (arms,))[:, None]
    y = rng.normal(0, 5, seeds) + sds * rng.standard_normal((arms, seeds))
    return {f"a{arm}": row for arm, row in enumerate(y.tolist())}


def test_two_arms_are_a_paired_t_test():
    losses = study(2, 6)
    (arm,) = effects(Table.of(losses, "a0"))
    d = np.array(losses["a1"]) - losses["a0"]
    assert (arm.value, arm.sd, arm.pairs) == pytest.approx((d.mean(), d.std(ddof=1), 6))
    half = student.isf(0.025, 5) * d.std(ddof=1) / math.sqrt(6)
    assert arm.spread.half_width(0.05) == pytest.approx(half)
    assert arm.spread.tail(half) == pytest.approx(0.05)


def test_what_other_arms_lack_does_not_move_an_effect():
    losses = study(6, 5)
    before = effects(Table.of(losses, "a0"))[0].value
    losses["a4"][1:] = [None] * 4
    assert effects(Table.of(losses, "a0"))[0].value == before


def test_only_seeds_that_both_finished_count():
    losses = {"a": [1.0, 2.0, 3.0, None], "b": [1.5, math.nan, 4.0, 9.0]}
    (arm,) = effects(Table.of(losses, "a"))
    assert (arm.value, arm.pairs) == (0.75, 2)


def test_a_diverged_run_is_no_loss_and_differs_from_one_that_is_missing():
    table = Table.of({"a": [1.0, 2.0, 3.0], "b": [1.0, math.nan, None], "c": [math.inf, 1.0]}, "a")
    assert table.diverged.tolist() == [[False] * 3, [False, True, False], [True, False, False]]
    assert np.isfinite(table.losses).tolist() == [[True] * 3, [True, False, False], [False, True, False]]


def test_an_arm_with_one_seed_or_none_has_no_error_and_changes_no_other():
    losses = study(5, 4)
    others = effects(Table.of(losses, "a0"))
    more = effects(Table.of(losses | {"gone": [None] * 4, "one": [1.0, None, None, None]}, "a0"))
    assert math.isnan(more[-2].value) and more[-2].spread is None and more[-1].spread is None
    assert [arm.spread.half_width(0.05) for arm in more[:-2]] == [arm.spread.half_width(0.05) for arm in others]


def test_a_more_variable_arm_costs_the_others_little():
    calm = effects(Table.of(study(12, 5), "a0"))
    *others, wild = effects(Table.of(study(12, 5, sd=[*[1.0] * 11, 30.0]), "a0"))
    for before, after in zip(calm, others, strict=False):
        assert after.spread.half_width(0.05) == pytest.approx(before.spread.half_width(0.05), rel=0.35)
    assert wild.spread.half_width(0.05) > 10 * others[0].spread.half_width(0.05)


def test_losses_that_are_all_the_same_have_no_variance():
    found = effects(Table.of({name: [1.1, 2.7, 3.9] for name in "abcd"}, "a"))
    assert [arm.value for arm in found] == [0.0] * 3
    assert all(arm.spread.half_width(0.001) < 1e-9 for arm in found)
    assert [arm.spread.tail(arm.value) for arm in found] == pytest.approx([1.0] * 3)


def test_documents_tell_close_arms_from_distant_ones_with_two_seeds():
    rng = np.random.default_rng(3)
    arms, documents, scale = 24, 60, np.geomspace(1e-3, 1.0, 24)
    base = rng.normal(6, 1, (2, documents))
    parts = {"base": base} | {f"a{n}": base + s * rng.normal(0, 1, (2, documents)) for n, s in enumerate(scale)}
    losses = {name: list(of.mean(1)) for name, of in parts.items()}
    table = Table.of(losses, "base", {name: list(map(tuple, of)) for name, of in parts.items()}, [10] * documents)
    sds = np.array([arm.seeds.sd for arm in effects(table)])
    true = scale / math.sqrt(documents * 2)
    assert np.abs(np.log(sds / true)).max() < math.log(2.5)  # own variances of one degree of freedom err by far more
    assert np.abs(np.log([arm.sd / math.sqrt(2) / t for arm, t in zip(effects(table), true, strict=True)])).max() > 2.5
    assert arms == len(sds)


def test_the_noise_of_the_evaluation_is_added_to_that_of_seeds():
    rng = np.random.default_rng(0)
    base = rng.normal(6, 1, (5, 40))
    own = rng.normal(0, 2, 40)  # by document, alike in all seeds
    parts = {"base": base, "arm": base + own + rng.normal(0, 0.1, (5, 40))}
    losses = {name: list(of.mean(1)) for name, of in parts.items()}
    told = {name: list(map(tuple, of)) for name, of in parts.items()}
    (arm,) = effects(Table.of(losses, "base", told, [10] * 40))
    assert arm.noise.se == pytest.approx(own.std(ddof=1) / math.sqrt(40), rel=0.05)
    assert arm.spread.half_width(0.05) == pytest.approx(student.isf(0.025, 39) * arm.noise.se, rel=0.05)
    (alone,) = effects(Table.of(losses, "base"))
    assert alone.noise is None and alone.spread.half_width(0.05) < arm.spread.half_width(0.05) / 5


def test_a_baseline_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="expected losses of 'z'"):
        Table.of({"a": [1.0], "b": [2.0]}, "z")
