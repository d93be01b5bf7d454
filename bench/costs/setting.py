"""Device and sizes of a bench, and its rounds in the form of pytest-benchmark."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.compare.arm import started
from bench.history.record import record
from bench.manifests import manifest_of
from ratrain.config.schema import Manifest
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import keep_freed_memory, set_determinism, synchronize
from ratrain.profile.paired_timing import Ratio, interleave, rows_of

_FEWEST = 5  # rounds, whatever time they take


def device_of(name: str) -> str:
    """Resolves `auto` to cuda if available, else cpu."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Setting:
    """Options of the command line. On a CPU the clock is the CPU time of this process, on one thread."""

    scale: str | None
    device: str
    rounds: int | None
    minutes: float
    overrides: tuple[str, ...] = ()
    cold: tuple[str, ...] = ()  # manifests whose cold start is measured

    def prepare(self) -> None:
        torch.set_num_threads(1)
        set_determinism("auto", self.place)
        keep_freed_memory()
        keep_compiled_code()

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    def manifest(self, name: str, *overrides: str) -> Manifest:
        """Returns the manifest at the measured scale, on a GPU with one micro-batch per step unless batch is set."""
        found = manifest_of(name, scale=self.scale, overrides=[*overrides, *self.overrides])
        if self.place.type == "cuda" and not any(word.startswith("train.batch") for word in self.overrides):
            train = found.train.model_copy(update={"batch": found.train.micro_batch})
            return found.model_copy(update={"train": train})
        return found

    def clock(self) -> float:
        if self.place.type == "cpu":
            return time.process_time()
        synchronize(self.place)
        return time.perf_counter()

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds of one call."""
        start = self.clock()
        step()
        return self.clock() - start

    def measure(
        self, steps: Mapping[str, Callable[[], object]], *, rounds: int, told: str = ""
    ) -> dict[str, list[float]]:
        """Returns seconds of each step by name and round; `rounds` is the default of the command line's option."""
        return self._interleaved({name: partial(self.timed, step) for name, step in steps.items()}, rounds, told)

    def measure_arms(self, arms: Mapping[str, Mapping[str, Any]], *, share: float, told: str) -> dict[str, list[float]]:
        """Returns seconds of a step by arm and round, each arm in its own process, in `share` of the time limit."""
        with started(arms) as ready:
            steps = {name: arm.step for name, arm in ready.items()}
            return self._interleaved(steps, self.rounds_within(steps, share=share), told)

    def _interleaved(self, arms: Mapping[str, Callable[[], float]], rounds: int, told: str) -> dict[str, list[float]]:
        count, began = self.rounds or rounds, time.monotonic()

        def show(done: int) -> None:
            if sys.stderr.isatty() and told:
                end = "\n" if done == count else ""
                print(f"\r{told}: round {done} of {count}, {time.monotonic() - began:.0f} s", end=end, file=sys.stderr)

        return interleave(arms, count, show)

    def rounds_within(self, steps: Mapping[str, Callable[[], object]], *, share: float = 1.0) -> int:
        """Returns the number of rounds of these that fit into the time limit, after two warm-up rounds."""
        for _ in range(2):  # the first compiles
            began = time.monotonic()
            for step in steps.values():
                step()
        once = 2 * (time.monotonic() - began)  # a round takes every step forwards and backwards
        return max(_FEWEST, int(60 * self.minutes * share / once))


class Replay:
    """A timer that replays rounds measured before, interleaved, to pytest-benchmark."""

    def __init__(self):
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Sequence[float]) -> None:
        self._readings = (reading for cost in seconds for reading in (0.0, cost))

    def __call__(self) -> float:
        return next(self._readings)

    def nothing(self) -> None:
        """Does nothing: the call that pytest-benchmark makes between two readings."""


REPLAY = Replay()
TABLES: dict[str, list[str]] = {}  # lines printed at the end, by suite


def add_row(
    benchmark: Any, suite: str, seconds: Sequence[float], lines: Sequence[str], info: Mapping[str, Any]
) -> None:
    """Adds a row to the tables of pytest-benchmark, with every round, and lines to those of the suite."""
    REPLAY.load(seconds)
    benchmark.group = suite
    benchmark.pedantic(REPLAY.nothing, rounds=len(seconds))
    benchmark.extra_info.update(info)
    TABLES.setdefault(suite, []).extend(lines)


class Measured:
    """Seconds of arms, by round, against those of `base`; `twin` is `base` measured again, for the resolution.

    `bases` holds the base's seconds of an arm's rounds, if the arms were not all measured in the same rounds. If RECORD
    is set, the rows are kept in bench/history, with the `extra` fields of each.
    """

    def __init__(
        self,
        suite: str,
        seconds: Mapping[str, list[float]],
        *,
        base: str,
        twin: str = "",
        extra: Mapping[str, Mapping[str, Any]] | None = None,
        bases: Mapping[str, list[float]] | None = None,
    ):
        self.suite, self.seconds, self.base = suite, seconds, base
        self.extra, self._bases = extra or {}, bases or {}
        self.noise = self.ratio(twin) if twin else Ratio(1.0, 1.0, 1.0)
        rows = {name: rows_of({base: self._base(name), name: cost}, base=base)[name] for name, cost in seconds.items()}
        record(suite, {name: {**row, **self.extra.get(name, {})} for name, row in rows.items()})

    def within(self, name: str, bound: float | None) -> str:
        """Whether the cost of an arm is at most `bound` times the base's, as far as this machine can tell."""
        if bound is None:
            return ""
        ratio, most = self.ratio(name), bound + self.noise.half_width
        word = "within" if ratio.high <= most else "NOT within" if ratio.low > most else "not told from"
        return f"{word} {bound}"

    def reaches(self, name: str, bound: float) -> str:
        """Whether the cost of an arm is at least `bound` times the base's, as far as this machine can tell."""
        ratio, least = self.ratio(name), bound - self.noise.half_width
        word = "at least" if ratio.low >= least else "NOT" if ratio.high < least else "not told from"
        return f"{word} {bound}"

    def ratio(self, name: str) -> Ratio:
        return Ratio.of(self.seconds[name], self._base(name))

    def _base(self, name: str) -> list[float]:
        return self._bases.get(name, self.seconds[self.base])

    def median(self, name: str) -> float:
        """Median seconds of an arm."""
        return statistics.median(self.seconds[name])

    def tell(self, benchmark: Any, name: str, verdict: str = "") -> None:
        """Adds a row to the tables of pytest-benchmark, with every round, and of the suite."""
        ratio, extra = self.ratio(name), self.extra.get(name, {})
        more = "  ".join(f"{key} {f'{value:,}' if isinstance(value, int) else value}" for key, value in extra.items())
        line = f"{name:24} {1e3 * self.median(name):9.3f} ms  {ratio} x {self.base}  {verdict:18} {more}"
        info = {"ratio": ratio.median, "low": ratio.low, "high": ratio.high, "base": self.base, **extra}
        add_row(benchmark, self.suite, self.seconds[name], [line.rstrip()], info)
