"""The losses of a rung, from the rows of its study."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ratrain.ablation.ladder.record import PlannedRung
from ratrain.ablation.ladder.results import RungResult
from ratrain.ablation.record import Planned, Study
from ratrain.ablation.results import Row

RUNG = PlannedRung(1, "x-rung1", "", 1000, 2, 16, 1, 64, 4, 10_000, 6e7, 1e-3)


def result(*rows: Row, tune: dict | None = None) -> RungResult:
    arms = tuple(row.arm for row in rows if row.arm.role != "tuned")
    plan = Planned("x", "", "", "rung1", "tokens", {"last": 1}, {}, tune, ((1, 1), (2, 2), (3, 3)), arms, "h")
    return RungResult(RUNG, Study(Path(), plan, plan), rows)


@pytest.fixture
def base(row) -> Row:
    return row("v0", "base", [3.0, 3.1, 3.2])


@pytest.fixture
def ruler(row) -> list[Row]:
    budgets = {"v0 x0.5": (5000, [3.3, 3.4, 3.5]), "v0 x2": (20_000, [2.8, 2.9, 3.0])}
    return [row(name, "ruler", losses, tokens=tokens) for name, (tokens, losses) in budgets.items()]


def test_arms_are_compared_and_the_ruler_is_the_curve(row, base, ruler):
    given = result(base, row("a", "arm", [2.9, 3.0, math.nan]), row("v0 wide", "control", [2.95, 3.05, 3.1]), *ruler)
    found = given.losses()
    assert found
    assert found.table.names == ("v0", "a")  # a control is of another width at every rung
    assert found.table.diverged[1].tolist() == [False, False, True]
    assert found.table.parts.shape == (2, 3, 2)
    assert found.curve[0.5] == {1: 3.3, 2: 3.4, 3: 3.5}
    assert set(found.curve) == {0.5, 1.0, 2.0}
    assert (found.number, found.flops, found.windows) == (1, 6e7, "w")
    assert given.arms == ["a"]


def test_a_costly_arm_has_the_cost_of_its_run(row, base, ruler):
    found = result(base, row("a", "arm", [2.9, 3.0, 3.1], flops=9000, tokens=5000), *ruler).losses()
    assert found
    assert math.exp(found.costs["a"]) == pytest.approx(1.5 * 0.5)


def test_with_tuning_the_tuned_arms_are_compared_under_their_own_names(row, base, ruler):
    tuned = [row("a tuned", "tuned", [2.7, 2.8, 2.9], of="a"), row("v0 tuned", "tuned", [2.9, 3.0, 3.1], of="v0")]
    found = result(base, row("a", "arm", [2.9, 3.0, 3.1]), *ruler, *tuned, tune={"grid": {}}).losses()
    assert found
    assert found.table.names == ("v0", "a")
    assert found.table.losses[1].tolist() == [2.7, 2.8, 2.9]
    assert found.curve[1.0] == {1: 3.0, 2: 3.1, 3: 3.2}  # the ruler has the shared learning rate


def test_before_the_baseline_and_an_arm_are_done_there_are_no_losses(row, base):
    assert result(base).losses() is None
    assert result(row("v0", "base", []), row("a", "arm", [2.9])).losses() is None
    assert RungResult(RUNG, None, ()).losses() is None


def test_an_arm_whose_runs_all_diverged_stays_in_the_table(row, base, ruler):
    found = result(base, row("a", "arm", [math.nan] * 3), row("b", "arm", [2.9, 3.0, 3.1]), *ruler).losses()
    assert found
    assert found.table.names == ("v0", "a", "b")
    assert found.table.diverged[1].all()


def test_runs_that_all_failed_are_named(row, base, ruler):
    gone = row("a", "arm", [2.9, 3.0, 3.1])
    gone = replace(gone, runs=tuple(replace(run, status="failed", loss=None) for run in gone.runs))
    found = result(base, row("b", "arm", [2.9, 3.0, 3.1]), gone, *ruler).losses()
    assert found
    assert found.failed == {"a": 3}
    alone = result(base, gone, *ruler)
    assert alone.losses() is None
    assert "all of its runs failed" in alone.lacks
    assert "no loss of the baseline" in result(row("v0", "base", [math.nan] * 3), *ruler).lacks


def test_runs_of_begun_arms_that_have_not_ended_are_counted(row, base, ruler):
    given = result(base, row("a", "arm", [2.9, 3.0, 3.1]), *ruler)
    assert given.waiting == 0
    late = replace(given.rows[1].runs[2], status="unfinished", loss=None)
    rows = (given.rows[0], replace(given.rows[1], runs=(*given.rows[1].runs[:2], late)), *given.rows[2:])
    assert replace(given, rows=rows).waiting == 1


def test_flops_are_those_of_every_run_until_its_end_and_once(row, base, ruler):
    given = result(base, row("a", "arm", [2.9, math.nan], flops=9000), *ruler)
    assert given.flops_spent == 3 * 6000 * 10_000 + 9000 * 15_000 + 3 * 6000 * 25_000
    shared = replace(row("a tuned", "tuned", [2.9, 2.8], of="a", flops=9000), runs=given.rows[1].runs)
    assert replace(given, rows=(*given.rows, shared)).flops_spent == given.flops_spent
