"""The peak of hand-made and of random allocations, found by looking at every moment."""

from __future__ import annotations

import random

from ratrain.profile.memory import Owners, at_peak, lives, timeline
from ratrain.profile.rows import BACKWARD, FORWARD, Marked, Work
from ratrain.profile.trace import Alloc, Op, Span

MARKS = Marked((Span(FORWARD, 0, 50), Span(BACKWARD, 50, 100)))


def brute(allocs, start, stop):
    """Live bytes at every moment of [start, stop)."""
    live = {}
    for at in range(start, stop):
        places = {}
        for alloc in allocs:
            if alloc.at <= at:
                places[alloc.place] = alloc.size if alloc.size > 0 else 0
        live[at] = sum(places.values())
    return live


def random_allocs(seed):
    dice, open_, found = random.Random(seed), {}, []
    for at in range(100):
        if open_ and dice.random() < 0.45:
            place = dice.choice(list(open_))
            found.append(Alloc(at, place, -open_.pop(place)))
        else:
            place = dice.choice([p for p in range(1, 200) if p not in open_])
            open_[place] = dice.randint(1, 1000)
            found.append(Alloc(at, place, open_[place]))
    return found


def test_the_peak_is_the_largest_of_all_moments():
    for seed in range(30):
        allocs = random_allocs(seed)
        live = brute(allocs, 30, 90)
        told = at_peak(
            lives(allocs), 30, 90, held={"parameters": 7}, gradients=set(), clipped=80, owners=Owners([], MARKS)
        )
        assert told["peak_bytes"] == 7 + max(live.values())
        assert sum(entry["bytes"] for entry in told["at_peak"]) == max(live.values())
        assert sum(told["split"].values()) == told["peak_bytes"]
        line = dict(timeline(lives(allocs), 30, 90))
        assert all(live[at] == size for at, size in line.items())


def test_what_is_alive_is_told_by_what_it_was_allocated_for():
    gelu = Op("aten::gelu", 20, 30)
    kernel = Op("graph_0_cpp_fused_add_1", 60, 70)
    allocs = [Alloc(22, 1, 100), Alloc(55, 2, 40), Alloc(80, 1, -100)]
    owners = Owners([Work(gelu, FORWARD), Work(kernel, BACKWARD)], MARKS)
    told = at_peak(lives(allocs), 0, 100, held={}, gradients=set(), clipped=90, owners=owners)
    assert told["peak_phase"] == BACKWARD
    assert told["at_peak"] == [
        {"phase": FORWARD, "op": "gelu", "bytes": 100, "count": 1},
        {"phase": BACKWARD, "op": "fused add #0.1", "bytes": 40, "count": 1},  # between two: for the next
    ]


def test_a_gradient_is_what_lives_until_it_is_clipped():
    """An activation that lay where a gradient comes to lie later is none."""
    allocs = [Alloc(10, 1, 500), Alloc(20, 2, 70), Alloc(30, 1, -500), Alloc(40, 1, 60), Alloc(95, 2, -70)]
    told = at_peak(
        lives(allocs), 0, 100, held={"parameters": 9}, gradients={1, 2}, clipped=90, owners=Owners([], MARKS)
    )
    assert told["split"] == {"parameters": 9, "gradients": 70, "activations_and_rest": 500}


def test_memory_that_was_taken_before_the_recording_is_not_counted():
    assert lives([Alloc(5, 9, -100)]) == []
    told = at_peak(
        lives([Alloc(5, 9, -100)]), 0, 10, held={"parameters": 3}, gradients=set(), clipped=5, owners=Owners([], MARKS)
    )
    assert (told["peak_bytes"], told["timeline_us_bytes"]) == (3, [[0.0, 3]])
