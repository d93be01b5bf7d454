"""Finds the line of each key in a TOML text: `tomli` gives the position of a syntax error, but not of a value."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tomli

MAX_DEPTH = 16  # tables within tables; keeps every walk over a manifest shallow and every key short

_TOKEN = re.compile(
    r'(?P<string>"""(?s:\\.|[^\\])*?"{3,5}|\'\'\'(?s:.)*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')'
    r"|(?P<skip>#[^\n]*|[ \t\r]+)|(?P<bare>[A-Za-z0-9_-]+)|(?P<mark>[^A-Za-z0-9_ \t\r#-])"
)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Returns the first line of each key and each table in `text`, which must be valid TOML."""
    lines: dict[tuple[str, ...], int] = {}
    scan = _Scan(lines)
    for line, kind, token in _tokens(text):
        scan.take(line, kind, token)
    return lines


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match.group()
        if kind != "skip":
            yield line, kind, token
        line += token.count("\n")


class _Scan:
    """Reads tokens one by one; `prefix` is the table that keys fall into, `parts` the key being read."""

    def __init__(self, lines: dict[tuple[str, ...], int]):
        self.lines = lines
        self.prefix: tuple[str, ...] = ()
        self.parts: tuple[str, ...] = ()
        self.in_value = False
        self.nest: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []  # open brackets; prefix and parts outside

    def take(self, line: int, kind: str, token: str) -> None:
        if self.in_value:
            self._value(kind, token)
        elif kind != "mark":
            self.parts += (_unquoted(token),)
        elif token == "=":
            self._record(line, self.prefix)
            self.in_value = True
        elif token == "]" and self.parts:  # the end of a header; the second ] of [[x]] finds no parts
            self.prefix, self.parts = self._record(line, ()), ()
        elif token == "}":
            self._close()

    def _value(self, kind: str, token: str) -> None:
        if kind != "mark":
            return
        if token in "[{":
            self.nest.append((token, self.prefix, self.parts))
            if token == "{":
                self.prefix, self.parts, self.in_value = (*self.prefix, *self.parts)[:MAX_DEPTH], (), False
        elif token in "]}":
            self._close()
        elif (token == "\n" and not self.nest) or (token == "," and self.nest[-1][0] == "{"):
            self.parts, self.in_value = (), False

    def _close(self) -> None:
        _, self.prefix, self.parts = self.nest.pop()
        self.in_value = True

    def _record(self, line: int, prefix: tuple[str, ...]) -> tuple[str, ...]:
        full = (*prefix, *self.parts)[:MAX_DEPTH]
        for end in range(len(prefix) + 1, len(full) + 1):
            self.lines.setdefault(full[:end], line)
        return full


def _unquoted(token: str) -> str:
    if token[0] == "'":
        return token[1:-1]
    if token[0] == '"':
        return tomli.loads(f"k = {token}")["k"]
    return token
