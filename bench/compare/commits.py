"""Compares the working tree with a commit: time of a step and its exact counters, both interleaved in one session.

Exits with 1 if an exact counter got worse; a slower step is only reported. Exits with 2 if nothing was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare.arm import started
from bench.compare.counters import COUNTERS, GATED, INSTRUCTIONS
from bench.compare.instructions import instructions
from bench.compare.verdict import MOST, NEW, OLD, ROUNDS, SETS, TWIN, Change, Verdict, decide
from bench.compare.worker import ArmError
from bench.history.record import record
from ratrain.profile.paired_timing import interleave

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tree:
    """A tree with the package, and its commit, with -dirty if it is edited."""

    folder: Path
    commit: str


@contextlib.contextmanager
def exported(ref: str, root: Path) -> Iterator[dict[str, Tree]]:
    """Yields the working tree at `root` as NEW, and `ref`, exported to a temporary folder, as OLD and TWIN.

    Raises ArmError.
    """
    if not (root / "ratrain").is_dir():
        raise ArmError(f"{root} has no package ratrain")
    none = f"{ref}: no such commit; REF is what git rev-parse takes"
    commit = _output(root, "git", "rev-parse", "--verify", "--quiet", "--short", f"{ref}^{{commit}}", otherwise=none)
    now = _output(root, "git", "describe", "--always", "--dirty")
    with tempfile.TemporaryDirectory(prefix="ratrain-compare-") as folder:
        _output(root, "git", "archive", "-o", f"{folder}/tree.tar", commit)
        _output(root, "tar", "-x", "-C", folder, "-f", f"{folder}/tree.tar")
        old = Tree(Path(folder), commit)
        yield {OLD: old, TWIN: old, NEW: Tree(root, now)}


def _output(root: Path, *words: str, otherwise: str = "") -> str:
    """Returns the output of a command in `root`. Raises ArmError with its stderr, or `otherwise` if that is empty."""
    try:
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ArmError(f"{words[0]} is not installed: a commit cannot be had without it") from None
    if done.returncode:
        raise ArmError(done.stderr.strip() or otherwise)
    return done.stdout.strip()


@dataclass(frozen=True)
class Compared:
    """A variant in both trees: a verdict on its time, and by OLD, TWIN and NEW seconds of steps and counters."""

    variant: str
    verdict: Verdict
    seconds: dict[str, list[float]]
    counted: dict[str, dict[str, int]]

    def changed(self, allowed: Sequence[str] = ()) -> dict[str, str]:
        """Returns a word on each counter with different values: WORSE if it fails the gate, unless it is `allowed`."""
        words, (old, twin, new) = {}, (self.counted[side] for side in (OLD, TWIN, NEW))
        for name in (name for name in (*COUNTERS, INSTRUCTIONS) if name in old and name in new):
            if twin.get(name, old[name]) != old[name]:
                words[name] = "unsure: the old tree differs from itself"
            elif name in GATED and name not in allowed and new[name] > GATED[name] * old[name]:
                words[name] = "WORSE"
            else:
                words[name] = "told only" if new[name] > old[name] else ""
        return {name: word for name, word in words.items() if old[name] != new[name]}

    def worse(self, allowed: Sequence[str] = ()) -> list[str]:
        """Counters that fail the gate."""
        return [name for name, word in self.changed(allowed).items() if word == "WORSE"]

    def ms(self, side: str) -> float:
        """Median milliseconds of a step."""
        return 1e3 * statistics.median(self.seconds[side])

    def row(self) -> dict[str, Any]:
        """The row kept in the history."""
        found, shape = self.verdict, {"ms": self.ms(NEW), "ms_then": self.ms(OLD)}
        shape |= {"median": found.ratio, "low": found.low, "high": found.high, "band": found.band}
        numbers = {key: round(value, 4) for key, value in shape.items()}
        counts = {"then": self.counted[OLD], "now": self.counted[NEW]}
        return {**numbers, "rounds": len(self.seconds[OLD]), "sets": found.sets, "verdict": found.word, **counts}


def compare(variant: str, trees: dict[str, Tree], asked: argparse.Namespace) -> Compared:
    """Measures a variant in both trees. Raises ArmError."""
    arguments = {"manifest": variant, "scale": asked.scale, "overrides": asked.set, "device": asked.device}
    arms: dict[str, dict[str, Any]] = {
        side: {"arguments": arguments, "source": tree.folder, "label": f"{variant} of {tree.commit}"}
        for side, tree in trees.items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in arms}
    counted: dict[str, dict[str, int]] = {}

    def draw() -> Change:
        at = len(seconds[OLD]) // asked.rounds + 1
        with started(arms) as ready:
            steps = {side: arm.step for side, arm in ready.items()}
            took = interleave(steps, asked.rounds, lambda n: _show(f"{variant}: set {at}, round {n}"))
            counted.update({} if counted else {side: arm.counters() for side, arm in ready.items()})
        for side, costs in took.items():
            seconds[side] += costs
        return Change.of(took)

    found = decide(draw, least=asked.sets or SETS, most=asked.sets or MOST)
    # of a tiny step, uncompiled: most of its instructions are overhead around the arithmetic
    tiny = {"manifest": variant, "scale": "tiny", "overrides": ["compile.scope=off"]}
    for side in (OLD, NEW):
        _show(f"{variant}: instructions")
        n = instructions(tiny, trees[side].folder, slow=asked.instructions, label=arms[side]["label"])
        counted[side].update({INSTRUCTIONS: n} if n is not None else {})
    _show("")
    return Compared(variant, found, seconds, counted)


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{progress}", end="", file=sys.stderr, flush=True)


def told(row: Compared, allowed: Sequence[str]) -> Iterator[str]:
    """Yields the printed lines of a variant."""
    found, old, new = row.verdict, row.counted[OLD], row.counted[NEW]
    ratio = f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"
    times = f"{row.ms(OLD):8.2f} {row.ms(NEW):8.2f} ms"
    yield f"{row.variant:18} {times}  {ratio}  noise ±{100 * found.band:.1f} %  {found}"
    for name, word in row.changed(allowed).items():
        share = f" ({100 * (new[name] / old[name] - 1):+.2f} %)" if old[name] else ""
        yield f"    {name:16} {old[name]:>14,} -> {new[name]:>14,}{share}  {word}".rstrip()
    if not row.changed():
        yield "    every counter as before"
    if INSTRUCTIONS not in new:
        yield "    instructions not counted: no such counter here; INSTRUCTIONS=1 has callgrind do it, in minutes"
    if found.word == "slower":
        yield "    warning: slower; time only warns"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: removes workers and folder
    asked = _parser().parse_args(argv)
    rows = []
    try:
        with exported(asked.ref, root) as trees:
            old, new = trees[OLD].commit, trees[NEW].commit
            edited = ", edited: measured as it is" if new.endswith("-dirty") else ""
            print(f"{asked.ref} ({old}) -> the working tree ({new}{edited}), {asked.scale}")
            for variant in asked.variants:
                rows.append(compare(variant, trees, asked))
                print(*told(rows[-1], asked.allow), sep="\n", flush=True)
    except ArmError as error:
        _show("")
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    words = [asked.scale, *([] if asked.device == "cpu" else [asked.device]), *asked.set]
    record(" ".join(["compare", *words]), {row.variant: row.row() for row in rows}, against=old)
    failed = {row.variant: worse for row in rows if (worse := row.worse(asked.allow))}
    for variant, worse in failed.items():
        print(f"FAILED: {variant}: {', '.join(worse)} got worse", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare.commits", description=__doc__)
    parser.add_argument("ref", help="a commit: main~3, a tag, a hash")
    parser.add_argument("--variants", nargs="+", default=["v0", "v9"])
    parser.add_argument("--scale", default="study_2026_11")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key to change in both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in a set of processes")
    parser.add_argument("--sets", type=int, help=f"of fresh processes ({SETS}, up to {MOST} if noise asks for it)")
    parser.add_argument("--instructions", action="store_true", help="count them by callgrind where the CPU cannot")
    parser.add_argument("--allow", nargs="+", default=[], choices=[*GATED], help="may grow")
    return parser


if __name__ == "__main__":
    sys.exit(main())
