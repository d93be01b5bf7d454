"""The history of the benches as a page: the results of every suite, commit by commit, on each kind of machine."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratrain.report.drawing import PAINT, drawn
from ratrain.report.html import WIDE_STYLE, Markup, document, figure, folded, grid, sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[2]
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
    parts = []
    for at, (suite, machine) in enumerate(ranked):
        kind, _, changes = suite.partition(" ")
        title = _CALLED.get(kind, suite) + (f" ({changes})" if changes else "")
        if len({of for name, of in groups if name == suite}) > 1:
            title += f" on {machine}"
        parts.append((f"suite-{at}", title, _suite(f"suite-{at}", groups[suite, machine])))
    lead = "".join(f"<p class=lead>{line}</p>" for line in _lead(measured))
    head = f"<header><h1>What a step costs, commit by commit</h1>{lead}</header>"
    return document("Bench history", head + sections(parts), WIDE_STYLE)


def _lead(measured: Sequence[Measured]) -> Iterator[str]:
    dates, machines = sorted(one.date for one in measured), sorted({one.machine for one in measured})
    if not measured:
        yield "Nothing is kept yet: RECORD=1 make bench keeps what it measures."
        return
    yield (
        f"<b>{len(measured)}</b> measurements, <b>{dates[0]}</b> to <b>{dates[-1]}</b>, on "
        f"{escape('; '.join(machines))}. Ratios are within a measurement, whose arms took turns: only they are "
        "compared over time, milliseconds are those of that day's machine."
    )
    yield (
        "Dots: medians, with 95 % intervals (99 % where two commits are compared). Square: the tree had edits that "
        f"the commit does not tell of. Shaded: within {100 * _FLAT:.0f} % of 1. RECORD=1 adds a measurement, "
        "<code>make bench-page</code> draws this page anew."
    )


def _suite(name: str, lines: Sequence[Measured]) -> str:
    """A small figure per arm, all with one axis, and a table of every number."""
    arms = list(dict.fromkeys(arm for line in lines for arm in line.rows))
    shown = {arm: [line for line in lines if "median" in line.rows.get(arm, {})] for arm in arms}
    told = {arm: of for arm, of in shown.items() if any(line.rows[arm]["median"] != 1 for line in of)}
    figures = "".join(_arm(f"{name}-{at}", arm, of, lines) for at, (arm, of) in enumerate(told.items()))
    latest = lines[-1]
    text = (
        f'<p class=quiet>Latest: {escape(_when(latest))}, torch {escape(latest.torch)}.</p><div class="many">{figures}'
    )
    return f"{text}</div>{folded('Every number', _table(arms, lines))}"


def _arm(name: str, arm: str, lines: Sequence[Measured], all_lines: Sequence[Measured]) -> str:
    rows = [line.rows[arm] for line in lines]
    ends = [rows[-1][key] for key in ("median", "low", "high")]
    caption = f"<b>{escape(arm)}</b><br><span class=quiet>{ends[0]:.3f} [{ends[1]:.3f}, {ends[2]:.3f}]</span>"
    words = f"{arm}: ratio of {len(rows)} measurements, the latest {ends[0]:.3f}"
    places = [all_lines.index(line) for line in lines]
    draw = partial(_ratios, lines=lines, rows=rows, places=places, every=all_lines)
    return figure(drawn(name, words, 1.5, draw, **_SMALL), Markup(caption))


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


def _table(arms: Sequence[str], lines: Sequence[Measured]) -> str:
    """Newest first: a column per measurement."""
    newest = list(reversed(lines))
    head = ("", *(_heading(line) for line in newest))
    return grid(head, [(arm, *(_cell(line.rows.get(arm)) for line in newest)) for arm in arms])


def _heading(line: Measured) -> str:
    against = f"<small>against {escape(line.against)}</small>" if line.against else ""
    return Markup(f"{escape(line.commit)}<small>{escape(line.date)}</small>{against}")


def _cell(row: dict[str, Any] | None) -> str:
    if not row or "median" not in row:
        return "-"
    lines = [f"[{row['low']:.3f}, {row['high']:.3f}]", f"{row['ms']:,.1f} ms"]
    lines += [row["verdict"]] if "verdict" in row else []
    return Markup(f"{row['median']:.3f}" + "".join(f"<small class=whole>{escape(line)}</small>" for line in lines))


def _when(line: Measured) -> str:
    against = f" against {line.against}" if line.against else ""
    noise = [row["high"] - row["low"] for row in line.rows.values() if row.get("median", 1) != 1]
    wide = f", intervals of ±{50 * statistics.median(noise):.1f} %" if noise else ""
    return f"{line.commit}{against} on {line.date}{wide}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.history.page", description=__doc__)
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
