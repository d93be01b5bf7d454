"""Renders a resolved manifest as TOML with the origin of every key, the difference of two, and the JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from ratrain.config.identity import plain
from ratrain.config.read import Source
from ratrain.config.schema import Manifest
from ratrain.config.toml import dotted, toml

Key = tuple[str, ...]


def render(manifest: Manifest, source: Source) -> str:
    """Renders a manifest file that resolves to `manifest`: every key in canonical order, with its origin."""
    tree = plain(manifest)
    lines = [_line((name,), value, source) for name, value in tree.items() if not isinstance(value, dict)]
    for name, value in tree.items():
        for key, table in _tables(name, value):
            lines += ["", f"[{dotted(key)}]", *(_line((*key, inner), child, source) for inner, child in table.items())]
    return "\n".join(lines) + "\n"


def located_keys(manifest: Manifest, source: Source) -> dict[str, dict[str, Any]]:
    """Returns the value and the origin of every key, by its dotted name."""
    leaves = _leaves(plain(manifest), ())
    return {dotted(key): {"value": value, "origin": _origin(key, value, source)} for key, value in leaves}


def diff(a: Manifest, b: Manifest) -> list[tuple[str, Any, Any]]:
    """Returns the keys with different values, each with both values; None if a manifest lacks the key."""
    left, right = dict(_leaves(plain(a), ())), dict(_leaves(plain(b), ()))
    keys = dict.fromkeys([*left, *right])
    return [(dotted(key), left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def json_schema(patches: Mapping[str, type], optimizers: Mapping[str, type]) -> dict[str, Any]:
    """Builds one JSON schema of manifest files for editors: no key is required, since a file may inherit any of
    them."""
    models = [Manifest, *(patches[kind] for kind in patches), *(optimizers[kind] for kind in optimizers)]
    refs, shared = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    defs = _without_required(shared["$defs"])
    found = {model: defs[ref["$ref"].rpartition("/")[2]] for (model, _), ref in refs.items()}
    schema = found[Manifest]
    names = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    any_patch = {"anyOf": [_with(found[patches[kind]], kind=kind, enabled=True) for kind in patches]}
    schema["properties"] |= {
        "extends": {"description": "manifests that this file extends", **names},
        "optim": {"anyOf": [_with(found[optimizers[kind]], kind=kind) for kind in optimizers]},
        "patch": {
            "type": "object",
            "properties": dict.fromkeys(patches, any_patch),
            "additionalProperties": any_patch if patches else False,
        },
    }
    others = {name: table for name, table in defs.items() if table is not schema}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": others}


def _tables(name: str, value: Any) -> Iterator[tuple[Key, dict[str, Any]]]:
    if name == "patch":
        yield from (((name, patch), options) for patch, options in value.items())
    elif isinstance(value, dict) and value:
        yield (name,), value


def _line(key: Key, value: Any, source: Source) -> str:
    return f"{dotted(key[-1:])} = {toml(value)}  # {_origin(key, value, source)}"


def _origin(key: Key, value: Any, source: Source) -> str:
    if found := source.origins.get(dotted(key)):
        return str(found)
    if key == ("init", "sha256"):
        return "of the weights"
    table = source.origins.get(dotted(key[:-1]))
    return str(table) if key[-1] == "kind" and key[0] == "patch" and table else "default"


def _leaves(value: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, (*key, name))
    else:
        yield key, value


def _with(schema: Mapping[str, Any], *, kind: str, enabled: bool = False) -> dict[str, Any]:
    keys = {"kind": {"const": kind}} | ({"enabled": {"type": "boolean"}} if enabled else {})
    return {**schema, "properties": {**keys, **schema.get("properties", {})}}


def _without_required(value: Any) -> Any:
    """Drops the lists named `required`, since a file may inherit missing keys."""
    if isinstance(value, list):
        return [_without_required(child) for child in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_required(child)
        for name, child in value.items()
        if not (name == "required" and isinstance(child, list))
    }
