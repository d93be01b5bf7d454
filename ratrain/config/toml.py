"""Writes values and keys as TOML; `tomli` reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml(value: Any) -> str:
    """Formats a boolean, number, string, list or table; a table goes into one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{dotted((name,))} = {toml(child)}" for name, child in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(toml, value))}]"
    return repr(value)


def quoted(text: str) -> str:
    """Quotes `text` as a basic string of TOML, with the escapes of JSON and one for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def dotted(parts: tuple[str, ...]) -> str:
    """Joins a key as a manifest writes it: bare parts unquoted, any other part in quotes."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in parts)
