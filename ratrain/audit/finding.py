"""The result of an audit on one claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A claim that holds or is broken, a warning or a note about the model, or an unchecked claim."""

    verdict: Literal["holds", "BROKEN", "warning", "note", "unchecked"]
    claim: str
    detail: str = ""


def some(names: list[str], most: int = 4) -> str:
    """Joins the first names, and adds the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
