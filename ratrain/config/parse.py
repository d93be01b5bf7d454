"""Parses one TOML file, or one `--set`, as a layer: its tree, the line of each key, and a label for messages."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from ratrain.config.lines import MAX_DEPTH, key_lines
from ratrain.config.toml import dotted
from ratrain.errors import Fault, ManifestError, MissingError

MAX_BYTES = 32_000  # the longest manifest is a tenth of this; parsing a larger file would only delay its refusal
MAX_KEYS = 1000  # an ablation of forty arms has 630
SHIPPED = Path(__file__).parent.parent / "manifests"
_DEFCONFIGS = SHIPPED.parent / "legacy" / "defconfigs"


@dataclass(frozen=True)
class Layer:
    """The keys and values of one file or one `--set`."""

    label: str
    tree: dict[str, Any]
    path: Path = Path()  # of a file; a `--set` has none
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *key: str) -> str:
        return f"{self.label}:{self.lines[key]}" if key in self.lines else self.label

    def fault(self, message: str, *key: str) -> ManifestError:
        return ManifestError([Fault(self.where(*key), dotted(key), message)])


def label_of(path: Path) -> str:
    """Returns the name of `path` in messages: `manifests/x.toml` or `legacy/defconfigs/x` if shipped, else relative to
    the current folder if below it, else as given."""
    try:
        full = path.resolve()
        label = str(path)
        for base, prefix in ((Path.cwd(), ""), (SHIPPED, "manifests/"), (_DEFCONFIGS, "legacy/defconfigs/")):
            if full.is_relative_to(base.resolve()):
                label = prefix + full.relative_to(base.resolve()).as_posix()
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        label = str(path)
    return "".join(char if char.isprintable() else "?" for char in label)


def parse_file(path: Path) -> Layer:
    """Parses a manifest file. Raises MissingError if it cannot be read, ManifestError if it is too large, not TOML, or
    holds unfit values."""
    label = label_of(path)
    text = _text(path, label)
    layer = Layer(label, _tree(text, label), path, key_lines(text))
    _check(layer)
    return layer


def parse_override(override: str) -> Layer:
    """Parses one `--set KEY=VALUE`; a value that is not TOML is a bare string. Raises ManifestError."""
    key, equals, value = override.partition("=")
    layer = Layer("--set", {})
    if not equals or not key.strip() or not override.isprintable():
        raise layer.fault(f"expected KEY=VALUE, such as train.budget.steps=100; got {override[:80]!r}")
    if not value.strip():
        raise layer.fault(f'{key.strip()}: expected a value after =; "" is the empty string')
    try:
        tree = tomli.loads(f"{key} = 0")
    except (ValueError, RecursionError):
        raise layer.fault(f"{key[:80]!r} is not a key; expected one such as train.batch") from None
    _plant(tree, _value(value.strip(), f"--set {key}"))
    layer = Layer("--set", tree)
    _check(layer)
    return layer


def _plant(tree: dict[str, Any], value: Any) -> None:
    (name,) = tree
    while isinstance(tree[name], dict):
        tree = tree[name]
        (name,) = tree
    tree[name] = value


def _value(text: str, label: str) -> Any:
    try:
        return tomli.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError) as error:
        if text[0] in "[{\"'" or not isinstance(error, tomli.TOMLDecodeError):
            raise ManifestError([Fault(label, "", f"the value is not TOML: {_reason(error)}")]) from None
    return text


def _text(path: Path, label: str) -> str:
    if not os.path.isfile(path):  # unlike Path.is_file, it never raises for odd names
        raise MissingError(f"{label}: {'a folder' if os.path.isdir(path) else 'no such file'}; expected a manifest")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MissingError(f"{label}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ManifestError([Fault(label, "", f"larger than {MAX_BYTES} bytes; expected a manifest")])
    try:
        return raw.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ManifestError([Fault(f"{label}:{line}:{column}", "", message)]) from None


def _tree(text: str, label: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ManifestError([Fault(f"{label}:{error.lineno}:{error.colno}", "", _reason(error))]) from None
    except (ValueError, RecursionError) as error:
        raise ManifestError([Fault(label, "", _reason(error))]) from None


def _reason(error: Exception) -> str:
    if isinstance(error, tomli.TOMLDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return f"nested more than {MAX_DEPTH} levels deep"
    return "an integer with thousands of digits; expected one that fits 64 bits"


def _check(layer: Layer) -> None:
    if len(layer.lines) > MAX_KEYS:
        raise ManifestError([Fault(layer.label, "", f"holds {len(layer.lines)} keys, more than {MAX_KEYS}")])
    faults = [fault for key, value in _walk(layer.tree) for fault in _unfit(layer, key, value)]
    if faults:
        raise ManifestError(faults)


def _walk(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every value of the tree that is no table or list; items of a list have the key of the list."""
    todo: list[tuple[tuple[str, ...], int, Any]] = [((), 0, tree)]
    while todo:
        key, depth, value = todo.pop()
        if depth > MAX_DEPTH or not isinstance(value, (dict, list)):
            yield key, value
        elif isinstance(value, dict):
            todo += [((*key, name), depth + 1, child) for name, child in reversed(value.items())]
        else:
            todo += [(key, depth + 1, child) for child in reversed(value)]


def keys_of(tree: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Returns the keys of all values that are no tables."""
    return {key for key, _ in _walk(dict(tree))}


def _unfit(layer: Layer, key: tuple[str, ...], value: Any) -> Iterator[Fault]:
    if isinstance(value, (dict, list)):
        yield Fault(layer.where(*key), dotted(key[:3]) + " ...", f"nested more than {MAX_DEPTH} levels deep")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield Fault(layer.where(*key), dotted(key), "expected an integer that fits 64 bits")
    elif not isinstance(value, (str, int, float)):
        yield Fault(layer.where(*key), dotted(key), f"no key is a date or a time, got {value}")
