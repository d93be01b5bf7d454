"""Converts pydantic's errors to faults in plain words, each with the file and line of its key."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ratrain.config.find import did_you_mean
from ratrain.config.names_elsewhere import FOREIGN
from ratrain.config.read import Source
from ratrain.config.toml import dotted
from ratrain.errors import Fault

Key = tuple[str, ...]

_EXPECTED = {
    "int": "an integer", "float": "a number", "string": "a string", "bool": "true or false", "list": "a list",
    "tuple": "a list", "frozen_set": "a list", "set": "a list", "dict": "a table", "model": "a table",
    "mapping": "a table", "dataclass": "a table", "model_attributes": "a table",
}  # fmt: skip
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "below"),
}  # fmt: skip


_HINTED = 50  # unknown keys that get a spelling hint: a file with more is no manifest


def fault_at(source: Source, key: Key, message: str) -> Fault:
    """Builds a fault of `key` at the origin of the key, else of the innermost table around it, else at the file."""
    for end in range(len(key), 0, -1):
        if origin := source.origins.get(dotted(key[:end])):
            return Fault(str(origin), dotted(key), message)
    return Fault(source.manifest, dotted(key), message)


def faults_of(
    error: ValidationError, source: Source, model: type[BaseModel], *, at: Key = (), homes: Mapping[str, Sequence[str]]
) -> list[Fault]:
    """Converts pydantic's errors on the table `at` to faults; the errors of a union's members become one fault."""
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault((*at, *_written(detail, source, at)), []).append(detail)
    faults = []
    for key, details in found.items():
        inner = key[len(at) :]
        if details[0]["type"] == "extra_forbidden":
            told = len(faults) < _HINTED
            message = unknown_key(key, _siblings(model, inner[:-1]), homes) if told else "unknown key"
        elif details[0]["type"] == "missing" and dotted(key) not in source.origins:
            message = f"missing; expected {_wanted(model, inner)}"
        else:
            message = _message(details)
        faults.append(fault_at(source, key, message))
    return faults


def unknown_key(key: Key, siblings: Iterable[str], homes: Mapping[str, Sequence[str]]) -> str:
    """Returns the message for an unknown key: its name in ratrain, its right section, or the nearest spelling."""
    *section, name = key
    in_patch = key[0] == "patch"
    near = did_you_mean(name, siblings)
    here = ".".join(section)
    others = [home for home in homes.get(name, ()) if home != here]
    others = [home for home in others if home.startswith(f"{here}.")] or others  # train.steps -> train.budget.steps
    others = [home for home in others if not any(home.startswith(f"{o}.") for o in others)]  # model, not model.base
    if in_patch and near:
        return f"unknown key{near}"
    if name in FOREIGN and not (name in homes and others):
        return f"unknown key; here it is {FOREIGN[name]!r}"
    if others:
        return f"unknown key; it belongs in {' or '.join(f'[{home}]' if home else 'no table' for home in others)}"
    if in_patch:
        return f"unknown key; the options are {', '.join(siblings)}"
    return f"unknown key{near or did_you_mean(name, homes)}"


def key_homes(model: type[BaseModel], at: str = "") -> dict[str, list[str]]:
    """Returns the sections that have each key: `lr` -> `["schedule"]`."""
    homes: dict[str, list[str]] = {}
    for name, info in model.model_fields.items():
        homes.setdefault(name, []).append(at)
        if inner := model_in(info.annotation):
            for key, sections in key_homes(inner, f"{at}.{name}" if at else name).items():
                homes.setdefault(key, []).extend(sections)
    return homes


def shown(value: Any) -> str:
    """Formats `value` for a fault, in at most one line; strings, tables and lists are named by their type."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    return f'the string "{_short(value)}"' if isinstance(value, str) else repr(value)


def _short(text: str) -> str:
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 60 else text[:57] + "..."


def _written(detail: Mapping[str, Any], source: Source, at: Key) -> Key:
    """Returns the part of pydantic's location that is a key of the manifest, without union members and list
    positions."""
    node: Any = source.tree
    for part in at:
        node = node[part]
    key: Key = ()
    for part in detail["loc"]:
        if isinstance(node, dict) and part in node:
            node, key = node[part], (*key, str(part))
        elif detail["type"] == "missing" and isinstance(node, dict) and isinstance(part, str):
            return (*key, part)
        elif isinstance(node, list):
            break
    return key


def _message(details: Sequence[Mapping[str, Any]]) -> str:
    kinds = [_EXPECTED.get(_stem(detail["type"])) for detail in details]
    if len(details) > 1 and all(kinds):
        return f"expected {' or '.join(dict.fromkeys(filter(None, kinds)))}, got {shown(details[0]['input'])}"
    told = [detail for detail, kind in zip(details, kinds, strict=True) if not kind]
    return _one((told or details)[0])


def _one(detail: Mapping[str, Any]) -> str:
    kind, ctx, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("value_error", "assertion_error"):
        return str(ctx["error"])
    if kind in _BOUNDS:
        return _bound(kind, ctx, value)
    if kind == "literal_error":
        choices = ctx["expected"].replace(" or ", ", ")
        return f"{repr(_short(value)) if isinstance(value, str) else shown(value)} is not one of {choices}"
    if kind == "finite_number":
        return f"must be finite, got {value}"
    if kind == "string_pattern_mismatch":
        return f'must match {ctx["pattern"]}, got "{_short(value)}"'
    if kind in ("too_long", "too_short", "missing"):
        return f"expected a list of another length, got {shown(value)}"
    if _stem(kind) == "int" and isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return f"expected an integer, got {value!r}; write {int(value)}"
    if wanted := _EXPECTED.get(_stem(kind)):
        return f"expected {wanted}, got {shown(value)}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {shown(value)}"


def _bound(kind: str, ctx: Mapping[str, Any], value: Any) -> str:
    name, words = _BOUNDS[kind]
    limit = ctx[name]
    if kind == "greater_than" and isinstance(limit, int) and isinstance(value, int):
        words, limit = "at least", limit + 1
    return f"must be {words} {limit:g}, got {value}"


def _stem(kind: str) -> str:
    return kind.removesuffix("_type").removesuffix("_from_float").removesuffix("_parsing")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the class of tables in an annotation such as `Span | None`; None without one."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _siblings(model: type[BaseModel], inner: Key) -> Iterable[str]:
    for name in inner:
        info = model.model_fields.get(name)
        found = model_in(info.annotation) if info else None
        if found is None:
            return ()
        model = found
    return model.model_fields


def _wanted(model: type[BaseModel], inner: Key) -> str:
    for name in inner[:-1]:
        info = model.model_fields.get(name)
        found = model_in(info.annotation) if info else None
        if found is None:
            return "a value"
        model = found
    info = model.model_fields.get(inner[-1])
    return _described(info.annotation) if info else "a value"


def _described(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    if _is_union(annotation):
        return " or ".join(_described(one) for one in typing.get_args(annotation) if one is not type(None))
    if model := model_in(annotation):
        return f"a table with {', '.join(model.model_fields)}"
    plain = typing.get_origin(annotation) or annotation
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", dict: "a table"}
    return names.get(plain, "a list" if plain in (list, tuple) else "a value")
