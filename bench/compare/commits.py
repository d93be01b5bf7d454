"""Compares the working tree with a commit: time of a step and its exact counters, both interleaved in one session.

Exits with 1 if an exact counter got worse; a slower step is only reported. Exits with 2 if nothing was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.compare import verdict as verdicts
from bench.compare.counters import COUNTERS, GATED, INSTRUCTIONS, TOLERANCE, instructions
from bench.compare.verdict import NEW, OLD, TWIN, Change, Verdict, decide
from bench.compare.worker import Arm, ArmError, interleaved
from bench.history.record import record

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trees:
    """The two compared trees and their names."""

    old: Path
    new: Path
    commit: str  # of the old one
    now: str  # of the new one, with -dirty if it is edited

    def of(self, side: str) -> Path:
        return self.new if side == NEW else self.old


@contextlib.contextmanager
def exported(ref: str, root: Path) -> Iterator[Trees]:
    """Yields the working tree at `root`, and `ref` exported to a folder that is removed afterwards. Raises ArmError."""
    if not (root / "ratrain").is_dir():
        raise ArmError(f"{root} has no package ratrain")
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--short", f"{ref}^{{commit}}", missing=ref)
    now = _git(root, "describe", "--always", "--dirty")
    with tempfile.TemporaryDirectory(prefix="ratrain-compare-") as folder:
        with subprocess.Popen(["git", "archive", commit], cwd=root, stdout=subprocess.PIPE) as archive:
            unpacked = subprocess.run(["tar", "-x", "-C", folder], stdin=archive.stdout, check=False)
        if archive.returncode or unpacked.returncode:
            raise ArmError(f"{ref}: git archive | tar failed")
        yield Trees(Path(folder), root, commit, now)


def _git(root: Path, *words: str, missing: str = "") -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ArmError("git is not installed: a commit cannot be had without it") from None
    if done.returncode:
        why = done.stderr.strip() or f"{missing or words[0]}: no such commit; REF is what git rev-parse takes"
        raise ArmError(why)
    return done.stdout.strip()


@dataclass
class Compared:
    """A variant in both trees. `verdict` is None if time was not measured."""

    variant: str
    old: dict[str, int]
    new: dict[str, int]
    unsure: list[str]  # counters in which the old tree differs from itself
    verdict: Verdict | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of steps, by side

    def changed(self) -> dict[str, tuple[int, int]]:
        """Counters present in both trees with different values: (old, new)."""
        both = [name for name in (*COUNTERS, INSTRUCTIONS) if name in self.old and name in self.new]
        return {name: (self.old[name], self.new[name]) for name in both if self.old[name] != self.new[name]}

    def worse(self, allowed: Sequence[str] = ()) -> list[str]:
        """Counters that fail the gate."""
        grown = [name for name, (old, new) in self.changed().items() if name in GATED and new > old]
        if self.new.get(INSTRUCTIONS, 0) > TOLERANCE * self.old.get(INSTRUCTIONS, float("inf")):
            grown.append(INSTRUCTIONS)
        return [name for name in grown if name not in (*allowed, *self.unsure)]

    def row(self) -> dict[str, Any]:
        """The row kept in the history."""
        told: dict[str, Any] = {"then": self.old, "now": self.new}
        if self.verdict is None:
            return told
        found, ms = self.verdict, {side: 1e3 * statistics.median(of) for side, of in self.seconds.items()}
        shape = {"ms": ms[NEW], "ms_then": ms[OLD], "median": found.ratio, "low": found.low, "high": found.high}
        numbers = {key: round(value, 4) for key, value in {**shape, "band": found.band}.items()}
        return {**numbers, "rounds": len(self.seconds[OLD]), "sets": found.sets, "verdict": found.word, **told}


def compare(variant: str, trees: Trees, asked: argparse.Namespace) -> Compared:
    """Measures a variant in both trees. Raises ArmError."""
    arguments = {"manifest": variant, "scale": asked.scale, "overrides": asked.set, "device": asked.device}
    labels = {side: f"{variant} of {trees.now if side == NEW else trees.commit}" for side in (OLD, TWIN, NEW)}
    seconds: dict[str, list[float]] = {OLD: [], TWIN: [], NEW: []}
    counted: dict[str, dict[str, int]] = {}

    def draw() -> Change:
        at = len(seconds[OLD]) // asked.rounds + 1
        with contextlib.ExitStack() as opened:
            arms = {}
            for side in seconds:
                arm = Arm.start(arguments=arguments, source=trees.of(side), label=labels[side], wait=False)
                arms[side] = opened.enter_context(arm)
            for arm in arms.values():
                arm.ready()
            took = interleaved(arms, asked.rounds, on_round=lambda n: _say(f"{variant}: set {at}, round {n}"))
            if not counted:
                counted.update((side, arm.counters()) for side, arm in arms.items())
        for side, of in took.items():
            seconds[side] += of
        return Change.of(took)

    found = None
    if asked.no_time:
        for side in seconds:
            with Arm.start(arguments=arguments, source=trees.of(side), label=labels[side]) as arm:
                counted[side] = arm.counters()
    else:
        found = decide(draw, least=asked.sets, most=max(asked.sets, verdicts.MOST if asked.more else 0))
    old, new = counted[OLD], counted[NEW]
    for side, of in ((OLD, old), (NEW, new)):
        _say(f"{labels[side]}: instructions")
        # of a tiny step, uncompiled: most of its instructions are overhead around the arithmetic
        tiny = {"manifest": variant, "scale": "tiny", "overrides": ["compile.scope=off"]}
        n = instructions(tiny, trees.of(side), slow=asked.instructions, label=labels[side])
        of.update({INSTRUCTIONS: n} if n is not None else {})
    _say("")
    unsure = [name for name in old if counted[TWIN].get(name, old[name]) != old[name] and name != INSTRUCTIONS]
    return Compared(variant, old, new, unsure, found, seconds)


def told(row: Compared, allowed: Sequence[str]) -> Iterator[str]:
    """Yields the printed lines of a variant."""
    if found := row.verdict:
        then, now = (1e3 * statistics.median(row.seconds[side]) for side in (OLD, NEW))
        ratio = f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"
        yield f"{row.variant:18} {then:8.2f} {now:8.2f} ms  {ratio}  noise ±{100 * found.band:.1f} %  {found}"
    else:
        yield row.variant
    worse = row.worse(allowed)
    for name, (old, new) in row.changed().items():
        share = f" ({100 * (new / old - 1):+.2f} %)" if old else ""
        word = "unsure: the old tree differs from itself" if name in row.unsure else ""
        word = word or ("WORSE" if name in worse else "told only" if new > old else "")
        yield f"    {name:16} {old:>14,} -> {new:>14,}{share}  {word}".rstrip()
    if not row.changed():
        yield "    every counter as before"
    if INSTRUCTIONS not in row.new:
        yield "    instructions not counted: no such counter here; INSTRUCTIONS=1 has callgrind do it, in minutes"
    if row.verdict and row.verdict.word == "slower":
        yield "    warning: slower; time only warns"


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line and "round" not in line:
        print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: removes workers and folder
    asked = _parser().parse_args(argv)
    try:
        with exported(asked.ref, root) as trees:
            edited = ", edited: measured as it is" if trees.now.endswith("-dirty") else ""
            if not asked.json:
                print(f"{asked.ref} ({trees.commit}) -> the working tree ({trees.now}{edited}), {asked.scale}")
            rows = []
            for variant in asked.variants:
                rows.append(compare(variant, trees, asked))
                if not asked.json:
                    print(*told(rows[-1], asked.allow), sep="\n", flush=True)
    except ArmError as error:
        _say("")
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    kept = {row.variant: row.row() for row in rows}
    if asked.json:
        print(json.dumps({"ref": asked.ref, "then": trees.commit, "now": trees.now, "rows": kept}))
    words = [asked.scale, *([] if asked.device == "cpu" else [asked.device]), *asked.set]
    record(" ".join(["compare", *words]), kept, against=trees.commit)
    failed = {row.variant: worse for row in rows if (worse := row.worse(asked.allow))}
    for variant, worse in failed.items():
        print(f"FAILED: {variant}: {', '.join(worse)} got worse", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare.commits", description=__doc__)
    parser.add_argument("ref", help="a commit: main~3, a tag, a hash")
    parser.add_argument("--variants", nargs="+", default=["v0", "v9"])
    parser.add_argument("--scale", default="study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key to change in both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=verdicts.ROUNDS, help="in a set of processes")
    parser.add_argument("--sets", type=int, default=verdicts.SETS, help="of fresh processes, at least")
    parser.add_argument("--exactly", dest="more", action="store_false", help="no more sets where noise is large")
    parser.add_argument("--no-time", action="store_true", help="count only")
    parser.add_argument("--instructions", action="store_true", help="count them by callgrind where the CPU cannot")
    parser.add_argument("--allow", nargs="+", default=[], choices=[*GATED, INSTRUCTIONS], help="may grow")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
