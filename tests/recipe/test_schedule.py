"""The learning rate, held to its closed forms."""

from __future__ import annotations

import itertools
import math

import pytest

from ratrain.config.schema import ScheduleSection, Span
from ratrain.recipe.schedule import Schedule

LR, FINAL = 3e-4, 0.1
KINDS = ["cosine", "linear", "wsd", "constant"]


def schedule(kind="cosine", *, warmup=None, total_steps=1000, **keys):
    keys |= {"kind": kind, "lr": LR, "final": FINAL, "warmup": warmup or Span(fraction=0.1)}
    section = ScheduleSection.model_validate(keys)
    return Schedule(section, total_steps=total_steps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_up_is_a_straight_line_to_the_peak(kind):
    lr = schedule(kind).lr
    assert [lr(x) for x in (0.01, 0.025, 0.05, 0.1)] == pytest.approx([0.1 * LR, 0.25 * LR, 0.5 * LR, LR])


def test_a_warm_up_in_steps_is_that_fraction_of_the_run():
    in_steps, in_parts = schedule(warmup=Span(steps=50), total_steps=200), schedule(warmup=Span(fraction=0.25))
    assert all(in_steps.lr(i / 200) == in_parts.lr(i / 200) for i in range(201))
    assert in_steps.lr(50 / 200) == LR


@pytest.mark.parametrize("warmup", [Span(fraction=0.0), Span(steps=0)])
def test_without_a_warm_up_the_first_step_is_at_the_peak(warmup):
    assert schedule("linear", warmup=warmup).lr(0.0) == LR


def test_the_first_step_of_a_long_warm_up_moves_something():
    assert schedule(warmup=Span(fraction=0.5)).lr(1e-9) == LR / 100


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("warmup", [Span(fraction=0.0), Span(fraction=0.1), Span(steps=700)])
def test_the_last_step_ends_at_the_final_rate(kind, warmup):
    assert schedule(kind, warmup=warmup).lr(1.0) == pytest.approx(FINAL * LR)


@pytest.mark.parametrize("after", [0.0, 0.25, 1 / 3, 0.5, 0.9])
def test_after_the_warm_up_each_kind_follows_its_formula(after):
    spent = 0.1 + 0.9 * after
    lr = {kind: schedule(kind).lr(spent) / LR for kind in KINDS}
    assert lr["cosine"] == pytest.approx(FINAL + (1 - FINAL) * (1 + math.cos(math.pi * after)) / 2)
    assert lr["linear"] == pytest.approx(1 - (1 - FINAL) * after)
    assert lr["constant"] == 1


def test_wsd_holds_its_peak_and_then_falls_as_one_minus_a_root():
    lr = schedule("wsd", decay=0.25).lr
    assert [lr(x) for x in (0.1, 0.5, 0.75)] == [LR] * 3
    for x in (0.04, 0.25, 0.5, 1.0):  # of the decay
        assert lr(0.75 + 0.25 * x) == pytest.approx(LR * (FINAL + (1 - FINAL) * (1 - math.sqrt(x))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_never_jumps_and_never_rises_again(kind):
    lr = schedule(kind).lr
    rates = [lr(i / 100_000) for i in range(100_001)]
    steepest = 0.9 * LR * math.sqrt(1 / 20_000) + 1e-12  # wsd's first step down
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < max(steepest, LR / 99)
    assert all(a >= b for a, b in itertools.pairwise(rates[10_000:]))
