"""Reads the text of one record, by one rule for JSON lines and tables: a string, or null, which is skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratrain.errors import DataError

_KINDS = {bool: "a truth value", int: "a number", float: "a number", dict: "an object", list: "a list"}


def text_of(record: Mapping[str, Any], field: str, where: str) -> str | None:
    """Returns the string in `field`, None for null. Raises DataError for anything else."""
    if field not in record:
        names = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{where}: has no text in field {field!r} (its fields: {names}); set --field")
    text = record[field]
    if text is not None and not isinstance(text, str):
        kind = _KINDS.get(type(text), f"a {type(text).__name__}")
        raise DataError(f"{where}: has no text in field {field!r}: it is {kind}; expected a string, or set --field")
    return text
