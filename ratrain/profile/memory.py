"""Live bytes over a step, and the memory alive at the peak, from the recorded allocations."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratrain.profile.rows import Marked, Work
from ratrain.profile.trace import Alloc, Op


@dataclass(frozen=True)
class Life:
    """An allocation from `start` to its release at `stop` (infinite without one), ns."""

    place: int
    size: int
    start: int
    stop: float = math.inf

    def covers(self, at: int) -> bool:
        return self.start <= at < self.stop


def lives(allocs: Iterable[Alloc]) -> list[Life]:
    """Pairs allocations with their releases; memory allocated before the recording is not included."""
    open_: dict[int, Alloc] = {}
    found: list[Life] = []
    for alloc in sorted(allocs, key=lambda alloc: alloc.at):
        taken = open_.pop(alloc.place, None)
        if taken is not None:
            found.append(Life(taken.place, taken.size, taken.at, alloc.at))
        if alloc.size > 0:
            open_[alloc.place] = alloc
    found += [Life(alloc.place, alloc.size, alloc.at) for alloc in open_.values()]
    return sorted(found, key=lambda life: life.start)


def timeline(found: Sequence[Life], start: int, stop: int) -> list[tuple[int, int]]:
    """Returns (ns, live bytes of recorded allocations) at `start` and after each change before `stop`."""
    edges: defaultdict[int, int] = defaultdict(int)
    for life in found:
        edges[max(start, life.start)] += life.size if life.stop > start else 0
        if start < life.stop < stop:
            edges[int(life.stop)] -= life.size
    live, line = 0, [(start, 0)]
    for at in sorted(edge for edge in edges if edge < stop):
        live += edges[at]
        line.append((at, live))
    return line[1:] if len(line) > 1 and line[1][0] == start else line


def at_peak(
    found: Sequence[Life], start: int, stop: int, *, held: Mapping[str, int], gradients: set[int], clipped: int,
    owners: Owners,
) -> dict[str, Any]:  # fmt: skip
    """Returns the peak between `start` and `stop` in bytes: the total, by kind, and by allocating operation.

    `held` is memory that lives throughout and was allocated before the recording. `gradients` are the addresses of the
    gradients at the time `clipped`: an allocation alive at the peak, at such an address and still alive then, is one.
    """
    line = timeline(found, start, stop)
    at, live = max(line, key=lambda point: point[1])
    alive = [life for life in found if life.covers(at)]
    grads = sum(life.size for life in alive if life.place in gradients and life.covers(clipped))
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for life in alive:
        groups[owners.of(life.start)].append(life.size)
    by_op = [{"phase": p, "op": o, "bytes": sum(sizes), "count": len(sizes)} for (p, o), sizes in groups.items()]
    kept = sum(held.values())
    return {
        "peak_bytes": kept + live,
        "peak_phase": owners.marks.phase(at),
        "split": {**held, "gradients": grads, "activations_and_rest": live - grads},
        "at_peak": sorted(by_op, key=lambda entry: -entry["bytes"]),
        "timeline_us_bytes": [[round((when - start) / 1e3, 1), kept + size] for when, size in line],
    }


class Owners:
    """Attributes allocations to operations.

    The owner is the running operation. Between two operations, as for allocations in Inductor's code, it is the next
    one: an estimate.
    """

    def __init__(self, works: Iterable[Work], marks: Marked):
        self._works = sorted(works, key=lambda work: work.op.start)
        self._stops = [work.op.stop for work in self._works]
        self.marks = marks

    def of(self, at: int) -> tuple[str, str]:
        """Returns the phase and the name of the operation that owns an allocation at a time."""
        index = bisect.bisect_left(self._stops, at)
        return self.marks.phase(at), self._works[index].name if index < len(self._works) else "-"


def all_allocs(root: Op) -> list[Alloc]:
    """Returns the allocations of a whole tree."""
    return [alloc for op in root.walk() for alloc in op.allocs]
