"""Reproduces the old `conf --olddefconfig`, errors included: the reading `legacy`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ratrain.legacy.readers.symbols import Definition, Symbol, symbols

_TOKEN = re.compile(r'\s*(&&|\|\||[()!=>]|"[^"]*"|\w+)')


@dataclass(frozen=True)
class Effective:
    """Symbols of the resulting .config, symbols dropped, and values changed: (declared, resulting)."""

    values: dict[str, str]
    ignored: tuple[str, ...]
    changed: dict[str, tuple[str, str]]


def olddefconfig(declared: Mapping[str, str], taken: Mapping[str, str]) -> Effective:
    """Returns the .config of declared values, of which the tool could read `taken`; both in the file's order."""
    kconfig = _Kconfig(taken)
    values = {name: value for name in symbols() if (value := kconfig.written(name)) is not None}
    lost = {name: said for name, said in declared.items() if values.get(name, "n") != said}
    ignored = tuple(sorted(name for name in lost if name not in values))
    changed = {name: (said, values[name]) for name, said in sorted(lost.items()) if name in values}
    return Effective(values, ignored, changed)


class _Kconfig:
    """Computes the value of each symbol once, on demand."""

    def __init__(self, declared: Mapping[str, str]):
        self._declared = declared
        self._known: dict[str, tuple[str, bool]] = {}
        self._held: dict[str, bool] = {}  # by condition
        self._choices: dict[str, list[str]] = {}
        self._selected_by: dict[str, list[str]] = {}
        for name, symbol in symbols().items():
            for one in symbol.definitions:
                if one.choice:
                    self._choices.setdefault(one.choice, []).append(name)
                for target in one.selects:
                    self._selected_by.setdefault(target, []).append(name)

    def written(self, name: str) -> str | None:
        """Returns the value of a symbol in .config, None if it is not written there."""
        value, said = self._of(name)
        return value if said else None

    def _value(self, name: str) -> str:
        return self._of(name)[0] if name in symbols() else ""

    def _of(self, name: str) -> tuple[str, bool]:
        if name not in self._known:
            symbol = symbols()[name]
            self._known[name] = self._bool(symbol) if symbol.first.type == "bool" else self._text(symbol)
        return self._known[name]

    def _bool(self, symbol: Symbol) -> tuple[str, bool]:
        visible = self._visible(symbol)
        if symbol.first.choice:
            return ("y" if self._chosen(symbol.first.choice) == symbol.name else "n", True) if visible else ("n", False)
        if visible and symbol.name in self._declared:
            value = self._declared[symbol.name]
        else:
            found = self._default(symbol)
            value = "y" if found and (found == "y" or self._holds(found)) else "n"
        if any(self._value(other) == "y" for other in self._selected_by.get(symbol.name, ())):
            value = "y"
        return value, visible or value == "y"

    def _text(self, symbol: Symbol) -> tuple[str, bool]:
        visible = self._visible(symbol)
        if visible and symbol.name in self._declared:
            return self._within(symbol.first, self._declared[symbol.name]), True
        found = self._default(symbol)
        return found or "", visible or found is not None

    def _within(self, one: Definition, value: str) -> str:
        if one.range is None:
            return value
        low, high = one.range
        return value if low <= int(value) <= high else str(min(max(int(value), low), high))

    def _visible(self, symbol: Symbol) -> bool:
        return any(not one.hidden and self._holds(one.needs) for one in symbol.definitions)

    def _default(self, symbol: Symbol) -> str | None:
        """Returns the first default whose definition and condition hold."""
        for one in symbol.definitions:
            for value, condition in one.defaults:
                if self._holds(one.needs) and self._holds(condition):
                    return value
        return None

    def _chosen(self, choice: str) -> str:
        """Returns the member of a choice that is y: the last set by the file, else the default, else the first."""
        members = [name for name in self._choices[choice] if self._visible(symbols()[name])]
        said = [name for name in self._declared if name in members and self._declared[name] == "y"]
        return said[-1] if said else choice if choice in members else members[0]

    def _holds(self, condition: str) -> bool:
        if condition not in self._held:
            self._held[condition] = not condition or _Condition(_tokens(condition), self._value).whole()
        return self._held[condition]


class _Condition:
    """A condition as Kconfig writes it: `!A && (B || C = "text" || D > 0)`."""

    def __init__(self, tokens: Iterator[str], value):
        self._tokens, self._value, self._next = tokens, value, next(tokens)

    def whole(self) -> bool:
        found = self._both()
        while self._next == "||":
            self._advance()
            found = self._both() or found  # both sides are parsed, even if the first holds
        return found

    def _both(self) -> bool:
        found = self._one()
        while self._next == "&&":
            self._advance()
            found = self._one() and found
        return found

    def _one(self) -> bool:
        token = self._advance()
        if token == "!":
            return not self._one()
        if token == "(":
            found = self.whole()
            self._advance()
            return found
        if self._next == "=":
            self._advance()
            return self._value(token) == self._advance().strip('"')
        if self._next == ">":
            self._advance()
            return int(self._value(token) or 0) > int(self._advance())
        return token == "y" or self._value(token) == "y"

    def _advance(self) -> str:
        token, self._next = self._next, next(self._tokens, "")
        return token


def _tokens(condition: str) -> Iterator[str]:
    return iter(_found(condition))


@cache
def _found(condition: str) -> list[str]:
    return _TOKEN.findall(condition)
