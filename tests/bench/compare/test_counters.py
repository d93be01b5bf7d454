"""Counters are exact, and whatever is planted into a step moves the one that is there to find it."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.compare.counters import COUNTERS, GATED, INSTRUCTIONS, count

PLANTED = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "planted.py")))


@pytest.fixture
def counted():
    """Counters of a planted step, after a warm-up."""

    def counted(does):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        step = PLANTED.step_that(does)
        for _ in range(3):
            step()
        return count(step)

    yield counted
    torch._dynamo.utils.counters.clear()


def test_the_same_step_counts_the_same_twice(counted):
    assert counted("nothing") == counted("nothing")


def test_a_read_raises_the_syncs(counted):
    plain, read = counted("nothing"), counted("reads")
    assert read["syncs"] == plain["syncs"] + 1
    assert read["allocated_bytes"] == plain["allocated_bytes"]


def test_a_graph_break_is_found(counted):
    plain, broken = counted("nothing"), counted("breaks")
    assert (plain["graphs"], plain["graph_breaks"]) == (1, 0)
    assert broken["graphs"] == 2 and broken["graph_breaks"] >= 1


def test_an_allocation_raises_the_bytes(counted):
    plain, more = counted("nothing"), counted("keeps")
    assert more["allocated_bytes"] == plain["allocated_bytes"] + 4 * (1 << 20)
    assert more["peak_bytes"] > plain["peak_bytes"] and more["allocations"] == plain["allocations"] + 1


def test_a_step_that_is_compiled_again_is_found():
    shapes = iter(range(2, 100))
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)

    def step():
        compiled(torch.ones(next(shapes)))

    step()
    assert count(step)["recompiles"] > 0


def test_every_gated_counter_is_explained():
    assert {*GATED} <= {*COUNTERS, INSTRUCTIONS}
