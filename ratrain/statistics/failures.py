"""Simulates runs on a cluster whose machines fail: finishing time, device-hours and lost work.

Machines fail independently, at exponentially distributed times. A run that loses a machine goes back to the queue and
on from its last checkpoint. The interval between checkpoints that loses least: Young 1974; Daly 2006, "A higher order
estimate of the optimum checkpoint interval for restart dumps", eq. 37.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

_MOST_FAILURES = 100_000  # in one simulation


@dataclass(frozen=True)
class Cluster:
    """Machines of `gpus` devices each; all times in seconds. `mtbf` is that of one machine, `repair` its absence."""

    nodes: int
    gpus: int
    mtbf: float = math.inf
    repair: float = 0.0


@dataclass(frozen=True)
class Work:
    """A run: `seconds` of training on `gpus` devices without a failure.

    A checkpoint every `interval` seconds of training stops it for `save` seconds, and is on the disk `behind` seconds
    later; a start takes `restart` seconds.
    """

    seconds: float
    gpus: int = 1
    interval: float = math.inf
    save: float = 0.0
    restart: float = 0.0
    behind: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Of one simulation: the finishing time, and device-seconds spent and lost again; failures of machines."""

    finish: float
    spent: float
    lost: float
    failures: int


@dataclass(frozen=True)
class Foretold:
    """Of many simulations: the median and the ninth decile of the finishing time; means of the rest."""

    finish: float
    late: float
    spent: float
    lost: float
    failures: float

    def shared(self, runs: int) -> Foretold:
        """Returns the same where what was simulated as a device is one of `runs` places on it."""
        return replace(self, spent=self.spent / runs, lost=self.lost / runs)


def best_interval(save: float, mtbf: float) -> float:
    """Returns the seconds of training between checkpoints that lose least, for a save of `save` seconds (Daly, eq. 37).

    `mtbf` is that of all machines of the run together. Infinite if they never fail, or if a save costs nothing.
    """
    if not math.isfinite(mtbf) or save <= 0:
        return math.inf
    if save >= 2 * mtbf:
        return mtbf
    part = math.sqrt(save / (2 * mtbf))
    return math.sqrt(2 * save * mtbf) * (1 + part / 3 + part**2 / 9) - save


def spanned(gpus: int, cluster: Cluster) -> int:
    """Returns the number of machines of a run on `gpus` devices. Raises ValueError if there are too few."""
    nodes = -(-gpus // cluster.gpus)
    if nodes > cluster.nodes:
        raise ValueError(f"a run on {gpus} devices needs {nodes} machines of {cluster.gpus}, there are {cluster.nodes}")
    return nodes


def foretell(rounds: Sequence[Sequence[Work]], cluster: Cluster, *, draws: int, seed: int) -> Foretold:
    """Simulates rounds of works, each begun when all of the one before it are done, `draws` times.

    Raises ValueError if the works do not end.
    """
    rng = np.random.default_rng(seed)
    found = np.array(
        [np.sum([astuple(simulate(works, cluster, rng)) for works in rounds], axis=0) for _ in range(draws)]
    )
    finish, late = np.quantile(found[:, 0], [0.5, 0.9])
    return Foretold(float(finish), float(late), *map(float, found[:, 1:].mean(axis=0)))


def simulate(works: Sequence[Work], cluster: Cluster, rng: np.random.Generator) -> Outcome:
    """Runs the works, in order, as devices become free; a run that fails goes to the front of the queue.

    A run of at most `cluster.gpus` devices shares a machine; a larger one takes whole machines. Raises ValueError if
    the works do not end: runs rarely live up to their next checkpoint.
    """
    return _Simulation(works, cluster, rng).run()


@dataclass
class _Running:
    work: Work
    begun: float
    nodes: tuple[int, ...]
    left: float  # seconds of training at its start


class _Simulation:
    def __init__(self, works: Sequence[Work], cluster: Cluster, rng: np.random.Generator):
        self._cluster, self._rng = cluster, rng
        self._queue = [(work, work.seconds) for work in reversed(works)]  # from its end
        self._free = [cluster.gpus] * cluster.nodes
        self._running: dict[int, _Running] = {}
        self._events: list[tuple[float, int, str, int]] = []  # time, tie, what, of which machine or run
        self._ties = 0
        self._spent = self._lost = 0.0
        self._failures = 0
        for node in range(cluster.nodes):
            self._fail_later(node, 0.0)

    def run(self) -> Outcome:
        self._start(0.0)
        now = 0.0
        while self._running or self._queue:
            now, _, what, which = heapq.heappop(self._events)
            if what == "end" and which in self._running:
                self._end(which, now)
            elif what == "fail":
                self._fail(which, now)
            elif what == "back":
                self._free[which] += self._cluster.gpus
                self._fail_later(which, now)
            self._start(now)
        return Outcome(now, self._spent, self._lost, self._failures)

    def _push(self, time: float, what: str, which: int) -> int:
        self._ties += 1
        heapq.heappush(self._events, (time, self._ties, what, which))
        return self._ties

    def _fail_later(self, node: int, now: float) -> None:
        if math.isfinite(self._cluster.mtbf):
            self._push(now + self._rng.exponential(self._cluster.mtbf), "fail", node)

    def _start(self, now: float) -> None:
        """Starts the first runs of the queue for which there is room."""
        while self._queue and (nodes := self._room(self._queue[-1][0].gpus)):
            work, left = self._queue.pop()
            each = work.gpus if len(nodes) == 1 else self._cluster.gpus
            for node in nodes:
                self._free[node] -= each
            key = self._push(now + work.restart + _with_saves(left, work), "end", self._ties + 1)
            self._running[key] = _Running(work, now, nodes, left)

    def _room(self, gpus: int) -> tuple[int, ...]:
        """Returns machines with room for a run; empty if there is none now."""
        wanted = spanned(gpus, self._cluster)
        each = gpus if wanted == 1 else self._cluster.gpus
        found = [node for node, free in enumerate(self._free) if free >= each]
        return tuple(found[:wanted]) if len(found) >= wanted else ()

    def _leave(self, key: int, now: float) -> _Running:
        run = self._running.pop(key)
        each = run.work.gpus if len(run.nodes) == 1 else self._cluster.gpus
        for node in run.nodes:
            self._free[node] += each
        self._spent += (now - run.begun) * each * len(run.nodes)
        return run

    def _end(self, key: int, now: float) -> None:
        self._leave(key, now)

    def _fail(self, node: int, now: float) -> None:
        """A machine goes; its runs return to the queue with what their checkpoints hold."""
        self._failures += 1
        if self._failures > _MOST_FAILURES:
            raise ValueError(
                f"not done after {_MOST_FAILURES:,} failures: runs rarely live up to their next checkpoint"
            )
        for key in [key for key, run in self._running.items() if node in run.nodes]:
            run = self._leave(key, now)
            trained = max(0.0, now - run.begun - run.work.restart)
            kept = _kept(trained, run.work)
            gone = now - run.begun - _with_saves(kept, run.work)
            self._lost += gone * (run.work.gpus if len(run.nodes) == 1 else self._cluster.gpus * len(run.nodes))
            self._queue.append((run.work, run.left - kept))
        self._free[node] -= self._cluster.gpus
        self._push(now + self._cluster.repair, "back", node)


def _with_saves(seconds: float, work: Work) -> float:
    """Returns the time of so many seconds of training, with a save after each interval but the last."""
    if not math.isfinite(work.interval):
        return seconds
    return seconds + work.save * max(0, math.ceil(seconds / work.interval - 1e-9) - 1)


def _kept(trained: float, work: Work) -> float:
    """Returns the seconds of training that are saved after `trained` seconds of training and saving."""
    if not math.isfinite(work.interval):
        return 0.0
    written = max(0, math.floor((trained - work.behind) / (work.interval + work.save) + 1e-9))
    return work.interval * written
