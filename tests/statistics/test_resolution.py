"""Plans before any run: seeds for an effect in per cent of the tokens."""

from __future__ import annotations

import json
import math

import pytest

from ratrain.statistics.power import power
from ratrain.statistics.resolution import KNOWN, MOST, Resolution, looks, rows, seeds_for


def test_pairing_is_worth_what_correlation_says():
    scale = Resolution(sd=0.002, r=0.75, slope=0.001, tokens=1000, rate=0.0, source="")
    assert scale.paired_sd == pytest.approx(0.002 * math.sqrt(0.5))
    assert scale.percent == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("ratio", "arms"), [(1.0, 1), (2.5, 1), (1.5, 5)])
def test_the_least_seeds_with_the_wanted_power_are_found(ratio, arms):
    seeds = seeds_for(ratio, arms=arms, wanted=0.8)
    options = {"arms": arms, "alpha": 0.05, "spending": "linear"}
    assert power(ratio, 1.0, seeds=seeds, looks=looks(seeds), **options) >= 0.8
    if seeds > 3:
        assert power(ratio, 1.0, seeds=seeds - 1, looks=looks(seeds - 1), **options) < 0.8


def test_what_no_two_hundred_seeds_find_is_told():
    assert seeds_for(0.05, arms=1, wanted=0.8) is None
    hopeless = Resolution(sd=1.0, r=0.0, slope=0.001, tokens=1, rate=1.0, source="")
    assert [(row.seeds, row.hours) for row in rows(hopeless, 1.0, arms=1, wanted=0.8)] == [(None, None)] * 2


def test_more_looks_than_forty_are_spread():
    assert looks(5) == (3, 4, 5)
    assert looks(MOST)[-1] == MOST
    assert len(looks(MOST)) <= 40


@pytest.mark.parametrize("scale", KNOWN)
def test_costs_follow_from_seeds(scale):
    known = KNOWN[scale]
    found = list(rows(known, 2.0, arms=3, wanted=0.8))
    assert [row.r for row in found] == sorted((row.r for row in found), reverse=True)
    for row in (row for row in found if row.seeds):
        assert row.runs == 4 * row.seeds
        assert row.tokens == row.runs * known.tokens
        assert row.hours == pytest.approx(row.tokens / known.rate / 3600)
        assert 3 <= row.as_needed <= row.seeds


def test_the_command_prints_a_plan(ratrain):
    code, out, err = ratrain("plan", "--effect", "1%", "--power", "0.8", "--scale", "gpt2_124m")
    assert (code, err) == (0, "")
    assert "1 % of the tokens is 1.46 mnat at gpt2_124m" in out
    assert "same initial weights and batches" in out
    found = json.loads(ratrain("plan", "--scale", "gpt2_124m", "--json")[1])
    assert found["plans"][0]["seeds"] == seeds_for(1 / KNOWN["gpt2_124m"].percent, arms=1, wanted=0.8)


def test_an_unknown_scale_needs_its_figures(ratrain):
    code, _, err = ratrain("plan", "--scale", "mine")
    assert code == 2
    assert "its noise is not known (it is for " in err
    assert "give --noise, --slope, --tokens" in err
    words = ("--noise", "0.01", "--slope", "0.004", "--tokens", "1000000", "--r", "0.9")
    assert ratrain("plan", "--scale", "mine", *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--effect", "much"), "expected per cent of the tokens, such as 1%"),
        (("--power", "1"), "expected a probability between 0 and 1"),
        (("--r", "1"), "expected a correlation from -1 to below 1"),
        (("--noise", "-1"), "expected a number above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(ratrain, words, told):
    code, _, err = ratrain("plan", *words)
    assert code == 2
    assert told in err
