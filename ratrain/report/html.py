"""Parts of HTML pages: each page is one self-contained file without script and network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #8884; white-space: nowrap; }
table.facts td { white-space: normal; vertical-align: top; }
pre { overflow-x: auto; padding: .8rem; background: #8881; border-radius: 4px; }
.quiet { color: #808080; }
"""

# style of pages that compare several runs; figures use these colours
WIDE_STYLE = """
:root { color-scheme: light dark;
  --page: #fbfaf8; --card: #fff; --ink: #1c1d1f; --quiet: #62666c; --line: #dedcd6; --band: #8a8f981f;
  --base: #1c1d1f; --better: #0a7554; --worse: #b3400f; --equivalent: #2c5cab; --inconclusive: #6b6f76;
  --s1: #2c6fbb; --s2: #c2571a; --s3: #14805f; --s4: #8a4fa8; --s5: #a07b00; --s6: #c0396b; --s7: #4a8fa8;
  --s8: #7a5c3e; --warn: #8a5a00; --warn-page: #fff6df; --warn-line: #e8c877; }
@media (prefers-color-scheme: dark) { :root {
  --page: #141517; --card: #1b1d20; --ink: #e6e5e1; --quiet: #9da1a8; --line: #34373c; --band: #a0a6b024;
  --base: #f2f0ea; --better: #4cc397; --worse: #f08a5b; --equivalent: #82aef2; --inconclusive: #a3a7ae;
  --s1: #6fa8ea; --s2: #ef9457; --s3: #4fc39a; --s4: #c593e0; --s5: #d8b53f; --s6: #ee82a6; --s7: #7fc4dc;
  --s8: #c9a27c; --warn: #f0c466; --warn-page: #2a2415; --warn-line: #5e4d20; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; margin: 0 auto;
  max-width: 78rem; padding: 2.2rem 1.2rem 4rem; color: var(--ink); background: var(--page);
  overflow-wrap: break-word; }
h1 { font-size: clamp(1.45rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .4rem;
  text-wrap: balance; max-width: 48rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 3.2rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0 .9rem; }
a { color: inherit; text-decoration-color: var(--quiet); text-underline-offset: .18em; }
code, pre { font: .88em/1.5 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); }
.quiet, figcaption { color: var(--quiet); }
section:first-of-type h2 { margin-top: 1.6rem; }
.lead { font-size: .95rem; color: var(--quiet); max-width: 60rem; margin: 0 0 .4rem; }
.lead b { color: var(--ink); font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 1.2rem 0 0; list-style: none;
  font-size: .92rem; }
.warnings { border: 1px solid var(--warn-line); border-left-width: 5px; background: var(--warn-page);
  border-radius: 8px; padding: .7rem 1.1rem; margin: 1.4rem 0; max-width: 60rem; }
.warnings h2 { all: unset; display: block; font-weight: 650; color: var(--warn); }
.warnings ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.box { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  margin: .8rem 0 1.1rem; width: fit-content; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
ul { max-width: 46rem; }
thead th { white-space: normal; color: var(--quiet); font-weight: 550; font-size: .8rem; vertical-align: bottom; }
th[scope=row] { font-weight: 600; background: var(--card); position: sticky; left: 0; z-index: 1;
  white-space: normal; overflow-wrap: break-word; min-width: min(8.5rem, 33vw); max-width: min(16rem, 33vw);
  box-shadow: 1px 0 0 var(--line); }
td.n, th.n { text-align: right; }
td small, th small { display: block; color: var(--quiet); font-size: .78rem; font-weight: 400; line-height: 1.4; }
td small { white-space: normal; max-width: 12rem; } .whole { white-space: nowrap; }
td.long { white-space: normal; min-width: 15rem; max-width: 34rem; overflow-wrap: anywhere; }
tr.base > * { background: color-mix(in srgb, var(--ink) 5%, var(--card)); }
.chip { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 .6em 0 .5em;
  font-size: .8rem; font-weight: 600; line-height: 1.55; white-space: nowrap;
  background: color-mix(in srgb, currentColor 11%, transparent); }
.better { color: var(--better); } .worse { color: var(--worse); } .equivalent { color: var(--equivalent); }
.inconclusive, .none { color: var(--inconclusive); }
.chips { display: flex; flex-wrap: wrap; gap: .5rem; margin: .6rem 0; padding: 0; list-style: none; }
figure { margin: .8rem 0 1.2rem; min-width: 0; }
figcaption { font-size: .85rem; line-height: 1.45; max-width: 34rem; margin: .3rem 0 0; }
svg, img { display: block; width: 100%; height: auto; max-width: 33rem; overflow: visible; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: .2rem 2.2rem;
  align-items: start; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 2.2rem;
  align-items: start; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 11.5rem), 1fr)); gap: .3rem 1rem; }
.many figure { margin: .3rem 0; display: flex; flex-direction: column; justify-content: flex-end; }
.many figcaption { order: -1; color: var(--ink); font-size: .82rem; overflow-wrap: anywhere; margin: 0; }
details { margin: .5rem 0; max-width: 100%; }
summary { cursor: pointer; }
dl.reasons { margin: .4rem 0; max-width: 56rem; font-size: .92rem; }
dl.reasons dt { font-weight: 600; margin-top: .5rem; } dl.reasons dd { margin: 0; color: var(--quiet); }
.wide { overflow-x: auto; } .wide img { max-width: 46rem; min-width: 34rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; background: none; } nav { display: none; }
  .box { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .2rem .35rem; white-space: normal; }
  th[scope=row] { position: static; min-width: 0; } figure, tr, .warnings { break-inside: avoid; }
  h2, h3 { break-after: avoid; } details::details-content { content-visibility: visible; block-size: auto; } }
"""


class Markup(str):
    """Text that is already HTML."""


def text(cell: str) -> str:
    """Returns the cell as HTML; escapes it unless it is Markup."""
    return cell if isinstance(cell, Markup) else escape(cell)


def document(title: str, body: str, style: str = STYLE) -> str:
    """Builds a whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>{body}</body></html>\n'
    )


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Builds a table under `head`; without one, a table of facts (name and text)."""
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)] if head else []
    cells += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table{'' if head else ' class=facts'}>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def image(png: bytes, words: str) -> str:
    """Wraps a picture in a paragraph; `words` is its alternative text."""
    return f"<p>{picture(png, words)}</p>"


def wide(png: bytes, words: str) -> str:
    """Wraps a picture so that it keeps its size on a phone and scrolls."""
    return f'<div class="wide" tabindex="0">{picture(png, words)}</div>'


def picture(png: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, first: str = "", spare: Sequence[str] = ()) -> str:
    """Builds a table that scrolls within its box.

    The first cell of a row is its header. Columns of numbers are right-aligned, and long text wraps. `first` is the
    class of the first row. `spare` columns are left out if all their cells are empty or "-".
    """
    if not rows:
        return ""
    columns = [
        column for column in zip(head, *rows, strict=True) if column[0] not in spare or {*column[1:]} - {"-", ""}
    ]
    numeric = [all(map(_is_number, column[1:])) for column in columns]
    titles, *body = zip(*columns, strict=True)
    top = "".join(f'<th scope="col"{_class(n, "")}>{text(cell)}</th>' for n, cell in zip(numeric, titles, strict=True))
    lines = []
    for at, (name, *cells) in enumerate(body):
        line = "".join(f"<td{_class(n, cell)}>{text(cell)}</td>" for n, cell in zip(numeric[1:], cells, strict=True))
        of = f' class="{first}"' if first and not at else ""
        lines.append(f'<tr{of}><th scope="row">{text(name)}</th>{line}</tr>')
    inside = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="box" tabindex="0"><table>{inside}</table></div>'


def _is_number(cell: str) -> bool:
    return not cell or cell in ("-", "1") or cell[0] in "0123456789+\N{MINUS SIGN}" or cell.startswith("-0")


def _class(numeric: bool, cell: str) -> str:
    if numeric:
        return ' class="n"'
    return ' class="long"' if len(cell) > 48 and not isinstance(cell, Markup) else ""


def figure(drawing: str, caption: str = "", *, beside: bool = False) -> str:
    """Wraps a drawing with its caption below or beside it; empty without a drawing."""
    if not drawing:
        return ""
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure{' class=beside' if beside else ''}>{drawing}{words}</figure>"


def sections(parts: Sequence[tuple[str, str, str]]) -> str:
    """Builds sections from (id, heading, content) after a table of contents; leaves out sections without content."""
    shown = [part for part in parts if part[2]]
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{content}</section>'
        for name, title, content in shown
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav><main>{body}</main>'


def folded(summary: str, content: str) -> str:
    """Wraps content in a collapsed block; empty without content."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>" if content else ""
