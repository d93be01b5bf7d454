"""Hand-made rows under a roof of 100 GFLOP/s and 10 GB/s."""

from __future__ import annotations

import pytest

from ratrain.profile.roofline import Roof, furthest, price
from ratrain.profile.rows import FORWARD, GAPS, Row
from ratrain.profile.table import sentence

ROOF = Roof(100e9, 10e9)


def row(ms, gflop=None, mb=None, *, name="row", phase=FORWARD, is_attention=False):
    flops, moved = (None if x is None else x * y for x, y in ((gflop, 1e9), (mb, 1e6)))
    return Row(phase, name, name, 1, ms / 1e3, flops, moved, is_attention)


@pytest.mark.parametrize(
    ("it", "percent", "bound"),
    [
        (row(20, gflop=1), 50, "compute"),
        (row(20, gflop=1, mb=10), 50, "compute"),
        (row(20, gflop=0.1, mb=100), 50, "memory"),
        (row(20, mb=20), 10, "memory"),
        (row(1, mb=20), 200, "cache"),
        (row(1, gflop=0.2, is_attention=True), 200, "masked"),
        (row(1), None, ""),
        (row(1, phase=GAPS), None, ""),
    ],
)
def test_the_roof_is_the_longer_of_arithmetic_and_memory(it, percent, bound):
    priced = price(it, ROOF)
    assert priced.percent == (None if percent is None else pytest.approx(percent))
    assert priced.bound == bound


def test_gain_is_what_is_above_the_roof_and_all_of_a_gap():
    gains = [price(it, ROOF).gain for it in (row(20, gflop=1), row(1, mb=20), row(1), row(3, phase=GAPS))]
    assert gains == pytest.approx([0.010, 0, 0, 0.003])
    assert price(row(20, gflop=1), ROOF).best == pytest.approx(0.010)
    assert price(row(3, phase=GAPS), ROOF).best == 0


def test_the_fastest_product_lifts_the_roof_but_attention_does_not():
    fast, slow, masked = row(5, gflop=1, name="fast"), row(20, gflop=1), row(1, gflop=1, is_attention=True)
    lifted = ROOF.lifted([slow, masked, fast])
    assert (lifted.flops, lifted.product) == (pytest.approx(200e9), "fast")
    assert ROOF.lifted([slow, masked]) == ROOF
    assert ROOF.lifted([]) == ROOF


def test_the_sentence_names_the_largest_distance_first():
    rows = [row(20, gflop=1, name="mm"), row(4, phase=GAPS, name="forward: Dynamo"), row(30, mb=10, name="gelu")]
    told = sentence(furthest([price(it, ROOF) for it in rows]), 0.054)
    assert told.startswith("most to gain: 29 ms, 53.7 % of the step: gelu (forward, at 3 % of the memory roof); then")
    assert "10 ms, 18.5 % of the step: mm" in told
    assert sentence([], 1.0).startswith("nothing to gain")
