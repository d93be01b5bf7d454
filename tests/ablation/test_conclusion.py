"""From what runs reached to what a study claims, and to JSON that others can read."""

from __future__ import annotations

import json
import math

import pytest

from ratrain.ablation.conclusion import conclude
from ratrain.ablation.plan import make_plan
from ratrain.ablation.results import Reached, Row

TEXT = 'id = "x"\nscale = "tiny"\narms = ["v1", "v9", "aa_ulp", "aa_init"]\nverdict.delta = 0.01\nseed.init = {seeds}\n'
BASE = (6.01, 5.98, 6.02, 6.00, 5.99)


@pytest.fixture
def concluded(study):
    """The conclusion on losses by arm, v0's being BASE; nan is a run that diverged."""

    def concluded(seeds=3, **losses):
        plan = make_plan(study(TEXT.format(seeds=list(range(1, seeds + 1)))))
        noise = (0.0006, -0.0004, 0.0001, -0.0002, 0.0003)
        known = {
            "v0": BASE,
            "v1": [a + b for a, b in zip(BASE, noise, strict=True)],
            "v9": [a - b for a, b in zip(BASE, noise, strict=True)],
            "aa_ulp": [a + 1e-5 * b for a, b in zip(BASE, noise, strict=True)],
            "aa_init": [a + 20 * b for a, b in zip(BASE, noise, strict=True)],
            **losses,
        }
        return conclude(plan, [_row(arm.name, known[arm.name][:seeds]) for arm in plan.arms])

    return concluded


def _row(name, losses):
    runs = [_reached(seed, loss) for seed, loss in enumerate(losses, 1)]
    return Row(name, {}, 1, 1, 1, tuple(runs), ())


def _reached(seed, loss):
    if loss is None:
        return Reached(seed, seed, "", "failed", None)
    status = "diverged" if math.isnan(loss) else "done"
    return Reached(seed, seed, "", status, loss if status == "done" else None)


def words(found):
    return {verdict.arm: verdict.word for verdict in found.judgement.verdicts}


def test_a_twin_by_one_rounding_is_equivalent_and_what_helps_is_better(concluded):
    found = concluded(5, v9=[loss - 0.05 for loss in BASE])
    assert words(found)["aa_ulp"] == "equivalent"
    assert words(found)["v9"] == "better"


def test_two_seeds_say_nothing_and_one_is_not_judged(concluded):
    assert set(words(concluded(2)).values()) == {"inconclusive"}
    assert concluded(1) is None


def test_a_diverged_seed_bars_better(concluded):
    losses = [loss - 0.05 for loss in BASE]
    losses[2] = math.nan
    found = concluded(5, v9=losses)
    assert words(found)["v9"] == "inconclusive"
    assert "1 seed diverged" in found.judgement["v9"].why


def test_a_run_that_failed_for_good_does_not_hold_up_the_others(concluded):
    losses = [loss - 0.05 for loss in BASE]
    found = concluded(5, v1=[None, *BASE[1:]], v9=losses)
    assert words(found)["v9"] == "better"
    assert found.judgement.looks == (3, 4, 5)


def test_the_noise_of_twins_is_measured_beside_the_baseline(concluded):
    found = concluded(5)
    assert set(found.noise) == {"ulp", "init"}
    halves = [(20 * b) ** 2 / 2 for b in (0.0006, -0.0004, 0.0001, -0.0002, 0.0003)]
    assert found.noise["init"].variance == pytest.approx(sum(halves) / 5)
    assert found.pairing.ratio < 0.5
    assert found.more[10] < found.more[3]


def test_it_is_json_without_infinities(concluded):
    text = json.dumps(concluded(2).record(), allow_nan=False)
    assert json.loads(text)["judgement"]["verdicts"][0]["word"] == "inconclusive"


def test_what_may_be_claimed_belongs_to_the_name_of_a_study(study):
    names = {make_plan(study(TEXT.format(seeds=[1]) + f"verdict.alpha = {alpha}\n")).name for alpha in (0.05, 0.01)}
    assert len(names) == 2
