"""Aligned columns on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Formats one row of a table with fixed column widths."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats all rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(aligned(row, widths) for row in rows)
