"""Reads a defconfig of the old tools line by line: values, ignored lines, and the reasons."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ratrain.config.find import did_you_mean
from ratrain.config.parse import label_of
from ratrain.errors import Fault, ManifestError, MissingError
from ratrain.legacy.readers.symbols import (
    UNDEFINED,
    UNDEFINED_ACTS,
    UNDEFINED_FLAGS,
    UNDEFINED_IDLE,
    UNDEFINED_REFUSED,
    Definition,
    chosen_by,
    known_names,
    symbols,
)

MAX_BYTES = 100_000  # the longest known file has 7 kB
_SETS = re.compile(r"CONFIG_(?P<name>\w+)(?P<space>\s*)=(?P<rest>.*)", re.ASCII)
_UNSETS = re.compile(r"#\s*CONFIG_(?P<name>\w+) is not set", re.ASCII)
_BARE = re.compile(r"(?P<name>[A-Z][A-Z0-9_]+)\s*=(?P<rest>.*)", re.ASCII)
_ACCEPT = "--accept-unknown ignores the line"
_NOTE = re.compile(r"\s+#.*$|\s+$")  # a comment or spaces after a value


@dataclass(frozen=True)
class Line:
    """A line that sets a symbol: `value` as intended; `taken` as the old tool read it, None if it dropped it."""

    number: int
    name: str
    value: str
    taken: str | None = None


@dataclass
class Defconfig:
    """The contents of a defconfig. `lines` holds the last line of each symbol; `ignored` and `faults` have reasons.

    `unknown`: lines with an unknown symbol that, by its name, selects a part of the model or of its training.
    """

    label: str
    name: str
    lines: dict[str, Line] = field(default_factory=dict)
    ignored: list[Fault] = field(default_factory=list)
    unknown: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def where(self, name: str) -> str:
        return f"{self.label}:{self.lines[name].number}"

    @property
    def declared(self) -> Mapping[str, str]:
        """The declared value of each symbol."""
        return {name: line.value for name, line in self.lines.items()}

    @property
    def taken(self) -> Mapping[str, str]:
        """The values as Kconfig read them, without lines that it dropped."""
        return {name: line.taken for name, line in self.lines.items() if line.taken is not None}


def is_defconfig(path: str | Path) -> bool:
    """Whether a line at the beginning of the file sets or unsets a symbol."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(_SETS.match(line) or _UNSETS.match(line) for line in head)


def read_defconfig(path: Path) -> Defconfig:
    """Reads the file. Raises MissingError, and ManifestError if it is not text; other faults are in the result."""
    label = label_of(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MissingError(f"{label}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ManifestError([Fault(label, "", f"larger than {MAX_BYTES} bytes; expected a defconfig")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ManifestError([Fault(f"{label}:{line}", "", message)]) from None
    found = Defconfig(label, path.name.removesuffix(".config") or path.name)
    for number, line in enumerate(text.split("\n"), start=1):
        _take(found, number, line.rstrip("\r"))
    return found


def _take(found: Defconfig, number: int, text: str) -> None:
    """Adds one line to `found`."""
    where = f"{found.label}:{number}"
    if match := _UNSETS.match(text):
        symbol = symbols().get(match["name"])
        _add(found, Line(number, match["name"], "n", "n" if symbol and symbol.first.type == "bool" else None))
    elif not text.strip() or text.lstrip().startswith("#"):
        return
    elif match := _SETS.match(text.strip()):
        exact = not match["space"] and text.startswith("CONFIG_")
        _set(found, where, number, match["name"], match["rest"], exact=exact)
    elif (match := _BARE.match(text.strip())) and match["name"] in known_names():
        _set(found, where, number, match["name"], match["rest"], exact=False)
    else:
        shown = "".join(char if char.isprintable() else "?" for char in text.strip())[:60]
        found.faults.append(Fault(where, "", f"{shown!r} sets nothing; expected CONFIG_NAME=value, or a comment"))


def _set(found: Defconfig, where: str, number: int, name: str, rest: str, *, exact: bool) -> None:
    symbol = symbols().get(name)
    if name not in known_names():
        _set_unknown(found, where, name, _NOTE.sub("", rest).strip())
        return
    kind = symbols()[UNDEFINED.get(name, name)].first if UNDEFINED.get(name, name) in symbols() else None
    if name in UNDEFINED_FLAGS:
        kind = Definition("bool")
    try:
        value = _meant(rest.strip(), kind)
    except ValueError as error:
        found.faults.append(Fault(where, name, str(error)))
        value = ""
    _add(found, Line(number, name, value, _taken(rest, symbol.first) if symbol and exact else None))


def _set_unknown(found: Defconfig, where: str, name: str, value: str) -> None:
    """Adds a line with an unknown symbol to `ignored`, or to `unknown` if it selects a part of the training."""
    near = did_you_mean(name, [*known_names()])
    choice = chosen_by(name)
    if value in ("n", "", '""') or not (choice or name in UNDEFINED_REFUSED):
        found.ignored.append(Fault(where, name, f"no such symbol{near}; the line is ignored"))
    elif name in UNDEFINED_REFUSED:
        found.unknown.append(Fault(where, name, f"{UNDEFINED_REFUSED[name]}; {_ACCEPT}"))
    elif choice:
        what, example = choice
        message = f"no such symbol{near}, and it chooses {what}; expected e.g. {example}; {_ACCEPT}"
        found.unknown.append(Fault(where, name, message))


def _add(found: Defconfig, line: Line) -> None:
    """Adds a line. The last line of a symbol counts, and takes its own position in the order."""
    before = found.lines.pop(line.name, None)
    if before is not None and before.value != line.value:
        where = f"{found.label}:{before.number}"
        found.ignored.append(Fault(where, line.name, f"line {line.number} sets it again, and that line counts"))
    if line.name not in known_names() and line.value == "n":
        return  # an unknown symbol that is off changes nothing
    found.lines[line.name] = line


def _meant(text: str, kind: Definition | None) -> str:
    """Returns the value without quotes and comments, checked by its type. Raises ValueError."""
    quote = text[:1] == '"'
    if quote:
        value, closed, _ = text[1:].partition('"')
        if not closed:
            raise ValueError(f'the closing " is missing: {text[:40]}')
    else:
        value = _NOTE.sub("", text)
    if not value.isprintable():
        raise ValueError("the value has characters that cannot be printed")
    if kind is None or kind.type == "string":
        return value
    if kind.type == "bool":
        if value[:1] not in ("y", "n") or quote:
            raise ValueError(f"expected y or n, got {text[:40]!r}")
        return value[0]
    if value == "n":  # another spelling of `is not set`
        return value
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        raise ValueError(f"expected a whole number, got {text[:40]!r}")
    low = kind.range[0] if kind.range else 0
    if int(value) < low:
        raise ValueError(f"must be at least {low}, got {value}")
    return value


def _taken(rest: str, kind: Definition) -> str | None:
    """Returns the value as Kconfig read it: a number to the end of the line, text in quotes, y or n by one letter."""
    if kind.type == "bool":
        return rest[0] if rest[:1] in ("y", "n") else None
    if kind.type == "int":
        return rest if re.fullmatch(r"-?\d+", rest, re.ASCII) else None
    return rest[1:].partition('"')[0] if re.match(r'"[^"]*"', rest) else None


def verdicts(found: Defconfig) -> tuple[list[Fault], list[Fault]]:
    """Returns the faults of symbols without effect here, and of symbols that are refused."""
    idle, refused = [], []
    for name, line in found.lines.items():
        meant = UNDEFINED.get(name, name)
        symbol = symbols().get(meant)
        if why := UNDEFINED_IDLE.get(name, symbol.idle if symbol and meant not in UNDEFINED_ACTS else ""):
            idle.append(Fault(found.where(name), name, why))
        elif symbol and symbol.refused and line.value != "n":
            refused.append(Fault(found.where(name), name, symbol.refused))
    return idle, refused
