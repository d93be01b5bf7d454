"""The history of the benches as a page: the results of every suite, commit by commit, on each kind of machine."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ratrain.report.drawing import PAINT, drawn
from ratrain.report.html import Cell, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
HISTORY, PAGE = ROOT / "bench" / "history", ROOT / "docs" / "performance" / "history.html"
_CALLED = {
    "variants": "A step of each variant, over V0's",
    "peers": "A step of other trainers, over ours",
    "engine": "A window of the engine, over its bare steps",
    "ops": "Our operations, over what they stand for",
    "decode": "A token drawn alone, over V0's",
    "compare": "A step, over the same variant's at another commit",
}
_FLAT = 0.02  # from 1: shaded
_SMALL = {"width": 2.4, "size": 8.5}  # of figures placed side by side, which are shown at their own size


class Arm(NamedTuple):
    """An arm of a suite, its latest median with its interval, and the drawing of all measurements."""

    name: str
    latest: str
    drawing: str


class Suite(NamedTuple):
    """A suite on one machine: a small figure per arm, all with one axis, and a table of every number."""

    name: str
    title: str
    latest: str
    torch: str
    arms: list[Arm]
    head: list[str | Cell]
    rows: list[tuple[str | Cell, ...]]


@dataclass(frozen=True)
class Measured:
    """A line of the history."""

    suite: str
    machine: str
    date: str
    commit: str
    against: str
    torch: str
    rows: dict[str, dict[str, Any]]

    @property
    def kind(self) -> str:
        return self.suite.partition(" ")[0]

    @property
    def dirty(self) -> bool:
        return self.commit.endswith("-dirty")


def read(folder: Path) -> list[Measured]:
    """Reads every line of every machine, in the order written. Raises ValueError, with file and line."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            try:
                told = {"against": "", **json.loads(line)}
                found.append(Measured(**{name: told[name] for name in Measured.__dataclass_fields__}))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file.name}:{number}: no result of a bench ({error!r})") from None
    return found


def page(measured: Sequence[Measured]) -> str:
    """Returns the page as HTML. Raises UnavailableError without matplotlib."""
    groups: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for one in measured:
        groups[one.suite, one.machine].append(one)
    ranked = sorted(groups, key=lambda group: [*_CALLED, group[0].partition(" ")[0]].index(group[0].partition(" ")[0]))
    suites = []
    for at, (suite, machine) in enumerate(ranked):
        kind, _, changes = suite.partition(" ")
        title = _CALLED.get(kind, suite) + (f" ({changes})" if changes else "")
        if len({of for name, of in groups if name == suite}) > 1:
            title += f" on {machine}"
        suites.append(_suite(f"suite-{at}", title, groups[suite, machine]))
    return render(
        "history.html.jinja",
        folder=Path(__file__).parent,
        title="Bench history",
        suites=suites,
        count=len(measured),
        dates=sorted(one.date for one in measured),
        machines=sorted({one.machine for one in measured}),
        flat=_FLAT,
    )


def _suite(name: str, title: str, lines: Sequence[Measured]) -> Suite:
    arms = list(dict.fromkeys(arm for line in lines for arm in line.rows))
    shown = {arm: [line for line in lines if "median" in line.rows.get(arm, {})] for arm in arms}
    told = {arm: of for arm, of in shown.items() if any(line.rows[arm]["median"] != 1 for line in of)}
    figures = [_arm(f"{name}-{at}", arm, of, lines) for at, (arm, of) in enumerate(told.items())]
    newest = list(reversed(lines))
    head = ["", *(_heading(line) for line in newest)]
    rows = [(arm, *(_cell(line.rows.get(arm)) for line in newest)) for arm in arms]
    return Suite(name, title, _when(lines[-1]), lines[-1].torch, figures, head, rows)


def _arm(name: str, arm: str, lines: Sequence[Measured], all_lines: Sequence[Measured]) -> Arm:
    rows = [line.rows[arm] for line in lines]
    ends = [rows[-1][key] for key in ("median", "low", "high")]
    words = f"{arm}: ratio of {len(rows)} measurements, the latest {ends[0]:.3f}"
    places = [all_lines.index(line) for line in lines]
    draw = partial(_ratios, lines=lines, rows=rows, places=places, every=all_lines)
    return Arm(arm, f"{ends[0]:.3f} [{ends[1]:.3f}, {ends[2]:.3f}]", drawn(name, words, 1.5, draw, **_SMALL))


def _ratios(
    axes: Axes, *, lines: Sequence[Measured], rows: Sequence[dict[str, Any]], places: Sequence[int],
    every: Sequence[Measured],
) -> None:  # fmt: skip
    last = len(every) - 1
    axes.axhspan(1 - _FLAT, 1 + _FLAT, color=PAINT["band"], linewidth=0)
    axes.axhline(1, color=PAINT["base"], linewidth=0.8)
    axes.plot(places, [row["median"] for row in rows], color=PAINT["s1"], linewidth=0.6)
    for place, line, row in zip(places, lines, rows, strict=True):
        axes.plot([place, place], [row["low"], row["high"]], color=PAINT["s1"], linewidth=1.4)
        axes.plot(place, row["median"], "s" if line.dirty else "o", markersize=3.6,
                  color=PAINT["s2" if line.dirty else "s1"])  # fmt: skip
    low, high = min(0.96, *(row["low"] for row in rows)), max(1.04, *(row["high"] for row in rows))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xlim(-0.5, last + 0.5)
    ticks = {0: every[0].commit, last: every[-1].commit}
    axes.set_xticks(list(ticks), [name.removesuffix("-dirty") for name in ticks.values()])
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=False):
        label.set_horizontalalignment(side if len(ticks) > 1 else "center")


def _heading(line: Measured) -> Cell:
    return Cell(line.commit, (line.date, f"against {line.against}" if line.against else ""))


def _cell(row: dict[str, Any] | None) -> str | Cell:
    if not row or "median" not in row:
        return "-"
    lines = f"[{row['low']:.3f}, {row['high']:.3f}]", f"{row['ms']:,.1f} ms", row.get("verdict", "")
    return Cell(f"{row['median']:.3f}", lines)


def _when(line: Measured) -> str:
    against = f" against {line.against}" if line.against else ""
    noise = [row["high"] - row["low"] for row in line.rows.values() if row.get("median", 1) != 1]
    wide = f", intervals of ±{50 * statistics.median(noise):.1f} %" if noise else ""
    return f"{line.commit}{against} on {line.date}{wide}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench/page.py", description=__doc__)
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--out", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    try:
        text = page(read(asked.history))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(text)
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
