"""Renders pages from jinja2 templates: each page is one self-contained file without script and network."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


class Cell(NamedTuple):
    """A table cell: a verdict, or "" for one that is still to come, then a line of text, then smaller lines."""

    text: str = ""
    notes: tuple[str, ...] = ()
    word: str | None = None


def render(template: str, *, folder: Path = TEMPLATES, **data: Any) -> str:
    """Renders a template of `folder`, which may extend and import those of report/templates."""
    return environment(folder).get_template(template).render(data)


@cache
def environment(folder: Path) -> Environment:
    """Returns the settings, loader and filters of the templates in `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only a page needs it

    made = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"base64": _base64, "intervals": _intervals, "known": _known, "numeric": _numeric}
    return made


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _known(
    rows: Sequence[Sequence[str | Cell]], head: Sequence[str | Cell], spare: Sequence[str]
) -> list[tuple[str | Cell, ...]]:
    """Returns the head and the rows, without the `spare` columns that hold nothing but "-" and empty cells."""
    columns = [
        column for column in zip(head, *rows, strict=True) if column[0] not in spare or {*column[1:]} - {"-", ""}
    ]
    return list(zip(*columns, strict=True))


def _numeric(rows: Sequence[Sequence[str | Cell]]) -> list[bool]:
    """Returns whether each column holds nothing but numbers, "-" and empty cells."""
    return [all(map(_is_number, column)) for column in zip(*rows, strict=True)]


def _is_number(cell: str | Cell) -> bool:
    if isinstance(cell, Cell):
        return cell.word is None and cell.text not in ("", "-") and _is_number(cell.text)
    return cell in ("", "-") or bool(re.match(r"\+|[-\N{MINUS SIGN}]?\d", cell))


def _intervals(text: str) -> list[tuple[str, bool]]:
    """Splits text before and after each [interval]; returns each part, and whether it is an interval."""
    return [(part, at % 2 == 1) for at, part in enumerate(re.split(r"(\[[^\]]*\])", text))]
