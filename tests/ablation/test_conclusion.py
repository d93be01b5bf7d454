"""From what runs reached to what a study claims, and to JSON that others can read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratrain.ablation.conclusion import conclude
from ratrain.ablation.plan import make_plan
from ratrain.ablation.record import Cost, Study, planned
from ratrain.ablation.results import Reached, Row
from ratrain.ablation.tuning import edges, tuning
from ratrain.events import Fingerprints, PruningEvaluated
from ratrain.storage.run_log import RunLog

TEXT = 'id = "x"\nscale = "tiny"\narms = ["v1", "v9", "aa_ulp", "aa_init"]\nverdict.delta = 0.01\nseed.init = {seeds}\n'
BASE = (6.01, 5.98, 6.02, 6.00, 5.99)
NOISE = (0.0006, -0.0004, 0.0001, -0.0002, 0.0003)
KNOWN = {
    "v0": BASE,
    "v1": [a + b for a, b in zip(BASE, NOISE, strict=True)],
    "v9": [a - b for a, b in zip(BASE, NOISE, strict=True)],
    "aa_ulp": [a + 1e-5 * b for a, b in zip(BASE, NOISE, strict=True)],
    "aa_init": [a + 20 * b for a, b in zip(BASE, NOISE, strict=True)],
}


@pytest.fixture
def studied(study, tmp_path):
    """The study of TEXT and more, its rows by losses of each arm; nan is a run that diverged, None one that failed."""

    def studied(losses, seeds=3, more="", *, costs=None, later=None):
        plan = planned(make_plan(study(TEXT.format(seeds=list(range(1, seeds + 1))) + more)))
        now = planned(make_plan(study(later))) if later else plan
        found = Study(tmp_path / "runs" / "studies" / "x", plan, now, costs=costs or {})
        return found, [_row(arm, losses.get(arm.name, ()), losses["v0"]) for arm in now.arms]

    return studied


@pytest.fixture
def concluded(studied):
    """The conclusion on losses by arm, v0's being BASE."""
    return lambda seeds=3, **losses: conclude(
        *studied({name: of[:seeds] for name, of in {**KNOWN, **losses}.items()}, seeds)
    )


def _row(arm, losses, base, parts=None):
    seeds = range(1, len(arm.seeds) + 1)
    told = [*losses, *["not begun"] * (len(arm.seeds) - len(losses))]
    runs = [_reached(seed, loss) for seed, loss in zip(seeds, told, strict=True)]
    both = [(a, b) for a, b in zip(base, losses, strict=False) if a is not None and b is not None]
    return Row(arm, tuple(runs), tuple(b - a for a, b in both if math.isfinite(a + b)))


def _reached(seed, loss):
    if loss is None or loss == "not begun":
        return Reached(seed, seed, "", loss or "failed", None, None)
    status = "diverged" if math.isnan(loss) else "done"
    return Reached(seed, seed, "", status, loss if status == "done" else None, None)


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
    assert found.more[5] == pytest.approx(found.detectable)  # one figure for the planned seeds


def test_it_is_json_without_infinities(concluded):
    text = json.dumps(concluded(2).record(), allow_nan=False)
    assert json.loads(text)["judgement"]["verdicts"][0]["word"] == "inconclusive"


def curve(tokens):
    """What the baseline of these tests reaches by tokens."""
    return 6.0 - 0.5 * math.log(tokens / 12800)


RULER = {name: [curve(f * 12800) + e for e in NOISE[:4]] for name, f in (("v0 x0.5", 0.5), ("v0", 1), ("v0 x2", 2))}


@pytest.fixture
def worth(studied):
    """What V9 is worth that has the loss of so many times the baseline's tokens, and a step of such a cost."""

    def worth(factor, cost=None):
        v9 = [curve(factor * 12800) - e for e in NOISE[:4]]
        losses = {**{name: list(of)[:4] for name, of in KNOWN.items()}, **RULER, "v9": v9, "v1": [*RULER["v0"]]}
        price = {"v9": Cost(0.01, cost, (cost - 0.01, cost + 0.01), 40)} if cost else {}
        return conclude(*studied(losses, 4, "ruler = [0.5, 2.0]\n", costs=price)).worth["v9"]

    return worth


def test_an_effect_is_read_as_tokens_through_the_baselines_curve(worth):
    for factor in (0.8, 1.0, 1.3):
        reading = worth(factor).tokens
        assert reading.gain == pytest.approx(factor - 1, abs=0.01)
        assert reading.interval[0] < factor - 1 < reading.interval[1]
    assert worth(1.3).seconds is None


@pytest.mark.parametrize(
    ("factor", "cost", "word"),
    [(1.3, 1.0, "better"), (1.3, 1.3, "inconclusive"), (1.3, 1.6, "worse"), (1.0, 1.3, "worse")],
)
def test_against_time_a_better_arm_may_be_worse(worth, factor, cost, word):
    found = worth(factor, cost)
    assert found.word == word
    assert found.seconds.gain == pytest.approx(factor / cost - 1, abs=0.015)


def test_a_costly_arm_is_compared_with_the_baseline_as_wide(studied):
    losses = {**{name: of[:3] for name, of in KNOWN.items()}, "v0 hidden=192": [loss - 0.04 for loss in BASE[:3]]}
    text = '\n[arm.wide]\nmanifest = "v10"\n'
    found = conclude(*studied({**losses, "wide": [loss - 0.05 for loss in BASE[:3]]}, 3, text))
    contrast = found.controls["wide"]
    assert contrast.control == "v0 hidden=192"
    assert contrast.effect == pytest.approx(-0.01)
    assert contrast.interval[0] < -0.01 < contrast.interval[1]
    assert words(found)["wide"] == "better"


def test_what_was_added_later_is_exploratory_and_changes_no_verdict(studied):
    text = TEXT.format(seeds=[1, 2, 3, 4, 5]) + '\n[arm.late]\nmanifest = "v8"\n'
    losses = {**KNOWN, "late": [loss - 0.05 for loss in BASE]}
    study, rows = studied(losses, 3, later=text)
    found, plain = conclude(study, rows), conclude(*studied({name: of[:3] for name, of in KNOWN.items()}, 3))
    assert found.judgement == plain.judgement
    assert {verdict.arm: verdict.word for verdict in found.later.verdicts}["late"] == "better"
    assert [warning for warning in found.warnings if "exploratory" in warning] == [
        "exploratory: added after the study had begun: late",
        "exploratory: seeds added after the study had begun: 4, 5",
    ]


def test_arms_that_have_not_begun_hold_up_nobody_and_count_in_the_family(concluded):
    some = concluded(5, v1=[], v9=[loss - 0.003 for loss in BASE])
    assert some.judgement.looks == (3, 4, 5)
    assert words(some)["v1"] == "inconclusive"
    assert some.judgement["v9"].p >= concluded(5, v9=[loss - 0.003 for loss in BASE]).judgement["v9"].p * 0.5


# tuned


TUNE = "[tune]\ngrid.schedule.lr = [1e-3, 2e-3, 4e-3]\nseed.init = [11, 12]\n"


def test_each_arm_is_taken_where_it_is_best_and_the_edge_of_the_grid_is_told(studied):
    losses = {name: of[:3] for name, of in KNOWN.items()}
    points = {"v0": (6.2, 6.0, 6.3), "v1": (6.2, math.nan, 6.1), "v9": (6.0, 6.1, 6.2)}
    for arm, means in points.items():
        for lr, mean in zip(("0.001", "0.002", "0.004"), means, strict=True):
            losses[f"{arm} tuning lr={lr}"] = [mean - 0.01, mean + 0.01]
    study, rows = studied(losses, 3, TUNE)
    tuned = tuning(study, rows)
    assert {arm: point["schedule.lr"] for arm, point in tuned.best.items()} == {"v0": 2e-3, "v1": 4e-3, "v9": 1e-3}
    assert tuned.losses["v0"]["schedule.lr = 0.002"] == pytest.approx(6.0)
    assert [arm for arm, _, _ in edges(study, tuned)] == ["v1", "v9"]
    assert any(
        "edge of grid: v9 is best at schedule.lr = 0.001" in warning for warning in conclude(study, rows).warnings
    )


def test_an_arm_whose_tuning_is_not_done_has_no_best_point(studied):
    losses = {**{name: of[:3] for name, of in KNOWN.items()}, "v0 tuning lr=0.001": [6.0, 6.0]}
    assert tuning(*studied(losses, 3, TUNE)) is None


# what a reader must know


def test_runs_that_do_not_share_what_they_should_are_told(studied):
    def log(weights="16x4 aa", order="x", attention="flash", **other):
        weights = {"wte.weight": weights}
        stated = Fingerprints(data="d", order=order, windows="w", weights=weights, unit="", sizes=())
        machine = {"torch": "2.13", "device": "cpu", "cpu": "a", **other}
        return RunLog(Path(), SimpleNamespace(environment=machine), fingerprints=stated, attention=attention)

    study, rows = studied({name: of[:3] for name, of in KNOWN.items()}, 3)
    logs = {"v1": log("16x4 bb"), "v9": log(order="y", attention="math")}
    logs |= {"aa_ulp": log("16x4 bb", torch="2.11", device="GPU", cpu="b"), "aa_init": log("16x4 cc", cpu="b")}
    rows = [replace(r, runs=tuple(replace(run, log=logs.get(r.arm.name, log())) for run in r.runs)) for r in rows]
    told = [warning for warning in conclude(study, rows).warnings if "unpaired" in warning]
    assert told == [
        "unpaired: v1 has another start of shared weights than v0 in 3 of 3 seeds",
        "unpaired: v9 has another order of batches than v0 in 3 of 3 seeds",
        "unpaired: v9 has another attention backend than v0 in 3 of 3 seeds",
        "unpaired: aa_ulp has another version of torch than v0 in 3 of 3 seeds",
        "unpaired: aa_ulp has another kind of device than v0 in 3 of 3 seeds",
        "unpaired: aa_init has another kind of processor than v0 in 3 of 3 seeds",
    ]


def test_a_study_that_cannot_find_what_it_asks_for_says_so(concluded):
    assert not [w for w in concluded(5, aa_init=KNOWN["v1"]).warnings if "underpowered" in w]
    loud = {name: [a + 50 * b for a, b in zip(BASE, NOISE, strict=True)] for name in ("v1", "v9")}
    assert [w for w in concluded(3, **loud).warnings if "underpowered: 3 seeds find an effect of" in w]
    assert [w for w in concluded(2).warnings if "no verdict rests on fewer than 3" in w]


def test_pruned_arms_that_are_not_as_sparse_as_asked_or_lost_a_matrix_are_told(studied):
    def log(reached, a):
        zeros = {"a.weight": (a, 9), "wte.weight": (0, 9)}
        loss = dict.fromkeys(("loss_dense_best", "loss_target_best", "loss", "loss_reloaded"), 4.0)
        size = dict.fromkeys(("not_zero", "peak_memory", "bytes_dense", "bytes_packed"), 0)
        said = {"step": 9, "target": 0.5, "reached": reached, "sparsity": a / 9, "pruned": ["a.weight"]}
        return RunLog(Path(), None, pruning=PruningEvaluated(**said, zeros=zeros, step_seconds={}, **loss, **size))

    study, rows = studied({name: of[:3] for name, of in KNOWN.items()}, 3)
    ends = {"v1": [log(False, 3), log(True, 6), log(False, 4)], "v9": [log(True, 9), log(True, 8), log(True, 9)]}
    rows = [
        replace(row, runs=tuple(replace(run, log=log) for run, log in zip(row.runs, ends[row.arm.name], strict=True)))
        if row.arm.name in ends
        else row
        for row in rows
    ]
    told = [warning for warning in conclude(study, rows).warnings if warning.startswith(("sparsity", "emptied"))]
    assert told == [
        "sparsity: v1 fell short of its target in 2 of 3 runs, down to 33.33%",
        "emptied: v9 has no weight left of a.weight in 2 of 3 runs",
    ]
