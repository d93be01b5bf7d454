"""The history of the benches as a page: the results of every suite, commit by commit, on each kind of machine."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ratrain.report.drawing import PAINT, drawn
from ratrain.report.html import Cell, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY = Path(__file__).parent
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance" / "history.html"
_CALLED = {
    "variants": "A step of each variant, over V0's",
    "peers": "A step of other trainers, over ours",
    "engine": "A window of the engine, over its bare steps",
    "ops": "Our operations, over what they stand for",
    "decode": "A token drawn alone, over V0's",
    "compare": "A step, over the same variant's at another commit",
}
_FLAT = 0.02  # from 1: shaded


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
class Line:
    """A line of the history: see record.py."""

    suite: str
    date: str
    commit: str
    machine: str
    torch: str
    threads: int
    rows: dict[str, dict[str, Any]]
    against: str = ""


Point = tuple[int, Line, dict[str, Any]]  # of an arm: its place in the suite, and its row of that line


def read(folder: Path) -> list[Line]:
    """Reads every line of every machine, in the order written. Raises ValueError, with file and line."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            try:
                found.append(Line(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file.name}:{number}: no result of a bench ({error!r})") from None
    return found


def page(lines: Sequence[Line]) -> str:
    """Returns the page as HTML. Raises UnavailableError without matplotlib."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line.suite, line.machine].append(line)
    kinds = [*_CALLED]
    parts: list[tuple[int, str, list[Line]]] = []
    for (suite, machine), group in groups.items():
        kind, _, changes = suite.partition(" ")
        title = _CALLED.get(kind, suite) + (f" ({changes})" if changes else "")
        title += f" on {machine}" if sum(suite == name for name, _ in groups) > 1 else ""
        parts.append((kinds.index(kind) if kind in kinds else len(kinds), title, group))
    parts.sort(key=lambda part: part[0])
    return render(
        "history.html.jinja",
        folder=HISTORY,
        title="Bench history",
        suites=[_suite(f"suite-{at}", title, group) for at, (_, title, group) in enumerate(parts)],
        count=len(lines),
        dates=sorted(line.date for line in lines),
        machines=sorted({line.machine for line in lines}),
        flat=_FLAT,
    )


def _suite(name: str, title: str, lines: Sequence[Line]) -> Suite:
    arms, figures = list(dict.fromkeys(arm for line in lines for arm in line.rows)), []
    for arm in arms:
        points = [(at, line, line.rows[arm]) for at, line in enumerate(lines) if "median" in line.rows.get(arm, {})]
        if any(row["median"] != 1 for _, _, row in points):
            figures.append(_arm(f"{name}-{len(figures)}", arm, points, lines))
    latest, newest = lines[-1], list(reversed(lines))
    against = f" against {latest.against}" if latest.against else ""
    noise = [row["high"] - row["low"] for row in latest.rows.values() if row.get("median", 1) != 1]
    wide = f", intervals of ±{50 * statistics.median(noise):.1f} %" if noise else ""
    when = f"{latest.commit}{against} on {latest.date}{wide}"
    head = ["", *(Cell(one.commit, (one.date, f"against {one.against}" if one.against else "")) for one in newest)]
    rows = [(arm, *(_numbers(line.rows.get(arm, {})) for line in newest)) for arm in arms]
    return Suite(name, title, when, latest.torch, figures, head, rows)


def _arm(name: str, arm: str, points: Sequence[Point], lines: Sequence[Line]) -> Arm:
    latest = points[-1][2]
    span = f"{latest['median']:.3f} [{latest['low']:.3f}, {latest['high']:.3f}]"
    words = f"{arm}: ratio of {len(points)} measurements, the latest {latest['median']:.3f}"
    # figures side by side are shown at their own size
    return Arm(arm, span, drawn(name, words, 1.5, lambda axes: _ratios(axes, points, lines), width=2.4, size=8.5))


def _ratios(axes: Axes, points: Sequence[Point], lines: Sequence[Line]) -> None:
    axes.axhspan(1 - _FLAT, 1 + _FLAT, color=PAINT["band"], linewidth=0)
    axes.axhline(1, color=PAINT["base"], linewidth=0.8)
    axes.plot([at for at, _, _ in points], [row["median"] for _, _, row in points], color=PAINT["s1"], linewidth=0.6)
    for at, line, row in points:
        axes.plot([at, at], [row["low"], row["high"]], color=PAINT["s1"], linewidth=1.4)
        mark, color = ("s", "s2") if line.commit.endswith("-dirty") else ("o", "s1")
        axes.plot(at, row["median"], mark, markersize=3.6, color=PAINT[color])
    low = min(0.96, *(row["low"] for _, _, row in points))
    high = max(1.04, *(row["high"] for _, _, row in points))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xlim(-0.5, len(lines) - 0.5)
    ends = {0: "left", len(lines) - 1: "right"} if len(lines) > 1 else {0: "center"}
    axes.set_xticks(list(ends), [lines[at].commit.removesuffix("-dirty") for at in ends])
    for label, side in zip(axes.get_xticklabels(), ends.values(), strict=True):
        label.set(horizontalalignment=side)


def _numbers(row: dict[str, Any]) -> str | Cell:
    if "median" not in row:
        return "-"
    notes = f"[{row['low']:.3f}, {row['high']:.3f}]", f"{row['ms']:,.1f} ms", row.get("verdict", "")
    return Cell(f"{row['median']:.3f}", notes)


def main() -> None:
    try:
        text = page(read(HISTORY))
    except ValueError as error:
        sys.exit(f"error: {error}")
    PAGE.write_text(text)
    print(PAGE)


if __name__ == "__main__":
    main()
