"""A manifest in the making: sections of keys, each with its value and the comment that says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ratrain.config.lines import dotted, quoted


@dataclass(frozen=True)
class Entry:
    """A value, and what to say of it."""

    value: Any
    why: str = ""


Section = dict[str, Entry]
Tree = dict[str, Section]  # by dotted name, in the order of a manifest


def toml(value: Any) -> str:
    """As a manifest writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{dotted((name,))} = {toml(child)}' for name, child in value.items())} }}"
    return repr(value)


def lines(tree: Tree, prefix: str = "") -> list[str]:
    """The sections as lines, each after an empty one."""
    found: list[str] = []
    for name, section in tree.items():
        if section:
            found += ["", f"[{prefix}{name}]", *(line(key, entry) for key, entry in section.items())]
    return found


def line(key: str, entry: Entry) -> str:
    return f"{key} = {toml(entry.value)}" + (f"  # {plain(entry.why)}" if entry.why else "")


def plain(text: str) -> str:
    """`text` fit for a comment: one line without what TOML refuses."""
    return "".join(char if char.isprintable() else "?" for char in text)
