"""A manifest under construction: sections of keys, each with its value and a comment on its origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ratrain.config.toml import toml


@dataclass(frozen=True)
class Entry:
    """A value and its comment."""

    value: Any
    why: str = ""


Section = dict[str, Entry]
Tree = dict[str, Section]  # by dotted name, in the order of a manifest


def lines(tree: Tree, prefix: str = "") -> list[str]:
    """Formats the sections as lines, with an empty line before each."""
    found: list[str] = []
    for name, section in tree.items():
        if section:
            found += ["", f"[{prefix}{name}]", *(line(key, entry) for key, entry in section.items())]
    return found


def line(key: str, entry: Entry) -> str:
    return f"{key} = {toml(entry.value)}" + (f"  # {plain(entry.why)}" if entry.why else "")


def plain(text: str) -> str:
    """Makes `text` fit for a TOML comment: one line, unprintable characters replaced."""
    return "".join(char if char.isprintable() else "?" for char in text)
