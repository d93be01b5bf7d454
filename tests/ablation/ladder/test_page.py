"""The page, ladder.json and the terminal's lines of a ladder, from rows of a known truth."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ratrain.ablation.ladder.climb import Climbed
from ratrain.ablation.ladder.record import Ladder, PlannedLadder, PlannedRung
from ratrain.ablation.ladder.results import RungResult, concluded
from ratrain.ablation.record import Planned, Study
from ratrain.cli.printing.ladder_text import ladder_lines
from ratrain.report.ladder.figures import places_of, ranking_figure
from ratrain.report.ladder.table import rates_text
from ratrain.report.ladder.write import write_ladder_report

TOKENS, FLOPS = (1e4, 3e4, 1e5, 3e5), (1e9, 1e10, 1e11, 1e12)
WORTH = {"holds": (1.2,) * 4, "shrinks": (1.3, 1.22, 1.14, 1.07), "twin": (1.1,) * 4}


def planned(rungs: int = 4) -> PlannedLadder:
    found = tuple(
        PlannedRung(
            number, f"x-rung{number}", "h", 1000 * 4**number, 2, 16 * number, number, 64, 4, int(tokens), flops, 1e-3
        )
        for number, (tokens, flops) in enumerate(zip(TOKENS[:rungs], FLOPS[:rungs], strict=True), start=1)
    )
    return PlannedLadder("x", "Three <arms>", "x.toml", "v0", "transferred (mup)", 0.05, 0.01, ("twin",), found)


@pytest.fixture
def climbed(tmp_path, row) -> Climbed:
    """Four rungs of four seeds; `twin` is planted."""
    rng, results, plan = np.random.default_rng(0), [], planned()
    for k, rung in enumerate(plan.rungs):
        common = rng.normal(0, 0.01, 4)

        def losses(budget: float, common=common) -> list[float]:
            return list(3 + budget**-0.4 + common + rng.normal(0, 0.001, 4))

        rows = [row("v0", "base", losses(1.0), tokens=rung.tokens)]
        for name, worth in WORTH.items():
            tokens = round(rung.tokens * worth[k]) if name == "twin" else rung.tokens
            rows.append(row(name, "arm", losses(worth[k]), tokens=tokens))
        rows += [row(f"v0 x{b}", "ruler", losses(b), tokens=round(b * rung.tokens)) for b in (0.7, 1.4)]
        arms = tuple(of.arm for of in rows)
        study = Planned(rung.study, "", "", "", "tokens", {"last": 1}, {}, None, ((1, 1), (2, 2)), arms, "h")
        results.append(RungResult(rung, Study(Path(), study, study), tuple(rows)))
    ladder = Ladder(tmp_path / "runs" / "ladders" / "x", plan)
    ladder.folder.mkdir(parents=True)
    found, why = concluded(ladder, results)
    return Climbed(ladder, results, found, why, 0)


def test_the_page_has_a_figure_of_every_arm_and_escapes_names(climbed):
    page = write_ladder_report(climbed).read_text()
    assert page.count("<svg") == len(WORTH) + 1  # and one of all arms
    assert "Three &lt;arms&gt;" in page
    for words in (
        "holds: gain holds",
        "shrinks: gain shrinks",
        "in truth twin is worth +10.0%, +10.0%, +10.0%, +10.0%",
    ):
        assert words in page
    assert "../../studies/x-rung3/report.html" in page
    assert "nan" not in page.lower().replace("finance", "")
    assert re.search(
        r"<td class=n>\+\d+\.\d%<small><span class=\"whole\">\[\+\d+\.\d%, \+\d+\.\d%\]</span></small>", page
    )


def test_the_figure_of_orders_names_the_arms_as_the_first_and_the_last_rung_have_them(climbed):
    figure = ranking_figure(climbed.conclusion, "v0")
    first, last = ["shrinks", "holds", "twin", "v0"], ["holds", "twin", "shrinks", "v0"]
    assert re.findall(r">(holds|shrinks|twin|v0)<", figure) == [*last, *first]  # the right side is drawn first
    places = places_of(climbed.conclusion, "v0")
    assert [sorted(places, key=lambda name: places[name][at]) for at in (0, -1)] == [first, last]


def test_the_file_beside_it_has_the_numbers(climbed):
    write_ladder_report(climbed)
    found = json.loads((climbed.ladder.folder / "ladder.json").read_text())
    holds = found["conclusion"]["arms"]["holds"]
    assert holds["word"] == "gain holds"
    assert holds["last"] == pytest.approx(math.log(1.2), abs=0.01)
    assert holds["next"]["interval"][0] < math.log(1.2) < holds["next"]["interval"][1]
    assert holds["held_out"]["inside"]
    assert [rung["runs"] for rung in found["done"]] == [4 * 6] * 4
    assert found["conclusion"]["agreement"][0] == [0, 1]  # of holds and shrinks, which change places; twin is planted


def test_the_terminal_shows_the_same_and_what_is_asked_for(climbed):
    said = "\n".join(ladder_lines(climbed, at=[3e12]))
    for words in ("gain shrinks", "3e+12 FLOPs", "3 of 3 gains inside", "planted: in truth twin", "transferred (mup)"):
        assert words in said


def test_runs_of_the_baseline_without_a_loss_are_told(climbed):
    rung = climbed.results[3]
    runs = rung.rows[0].runs
    gone = replace(rung.rows[0], runs=(replace(runs[0], status="diverged", loss=math.nan), *runs[1:]))
    results = [*climbed.results[:3], replace(rung, rows=(gone, *rung.rows[1:]))]
    assert "rung 4: 1 of 4 runs of v0 are left out, no loss" in list(ladder_lines(replace(climbed, results=results)))


def test_before_the_last_rung_is_done_the_page_says_what_is_missing(climbed):
    results = [*climbed.results[:3], RungResult(climbed.results[3].rung, None, ())]
    found, why = concluded(climbed.ladder, results)
    early = replace(climbed, results=results, conclusion=found, why=why)
    assert "rung 4 is not done" in write_ladder_report(early).read_text()
    assert "no trend yet: rung 4 is not done" in list(ladder_lines(early))


def test_what_the_choice_of_learning_rates_leaves_open_is_told():
    plan = planned()
    assert rates_text(plan) == "transferred (mup)"
    rungs = (*plan.rungs[:3], replace(plan.rungs[3], batch=8))
    assert "batch sizes that differ" in rates_text(replace(plan, rungs=rungs))
    assert "batch sizes that differ" in rates_text(replace(plan, rates="the same", rungs=rungs))
    assert "the ruler's runs keep the rate" in rates_text(replace(plan, rates="tuned", rungs=rungs))
