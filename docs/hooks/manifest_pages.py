"""Pages of the reference that list keys: of manifests, studies, patches and optimizers, from their pydantic models."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from ratrain.ablation.ladder.manifest import LadderManifest
from ratrain.ablation.manifest import AblationManifest
from ratrain.config.schema import Manifest, OptimSection
from ratrain.config.toml import toml
from ratrain.registry import Kinds, Patch, optim_kinds, patch_kinds

_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"


def manifest() -> str:
    """Every key of a manifest by table; those of `[optim]` and `[patch.NAME]` have pages of their own."""
    intro = """# Manifest

Every key of a manifest. `ratrain show NAME` prints the keys of a variant with the file and line that set them. A key
that is not listed here is refused. Each kind adds its own keys to `[optim]` ([Optimizers](optimizers.md)) and to
`[patch.NAME]` ([Patches](patches.md)). A file also has `extends`: one manifest or several whose keys it takes over, the
later ones over the earlier ones, its own over all of them.
"""
    common = f"\n## `[optim]`\n\n{doc(OptimSection)}\n\n{_table(OptimSection)}"
    return intro + "".join(_sections(Manifest, level=2)) + common


def study() -> str:
    """Every key of an ablation manifest by table."""
    intro = """# Study

Every key of an ablation manifest, which `ratrain --ablate FILE` reads. [Studies](../studies.md) explains their use.
"""
    return intro + "".join(_sections(AblationManifest, level=2))


def ladder() -> str:
    """Every key of a ladder manifest by table."""
    intro = """# Ladder

Every key of a ladder manifest, which `ratrain --ladder FILE` reads: those of a study, and `rungs`. `budget` is refused
in it. [Ladders](../ladders.md) explains their use.
"""
    return intro + "".join(_sections(LadderManifest, level=2))


def patches() -> str:
    """Every kind of patch with its source, its seam and its options."""
    intro = """# Patches

The kinds of `[patch.NAME]`. The kind is NAME unless the table has a key `kind`. Beside its own options each patch has
`target`, the pattern of the seam that it replaces, `activation`, a schedule in place of the manifest's, and `enabled`.
[Mechanisms of your own](../mechanisms.md) lists the seams.
"""
    return intro + "".join(_kinds(patch_kinds(), beside=Patch))


def optimizers() -> str:
    """Every kind of optimizer with its source and its options."""
    intro = """# Optimizers

The kinds of `optim.kind`. Beside its own keys each has `weight_decay` and `clip`. [A table](../optimizers.md) compares
their rules and memory.
"""
    return intro + "".join(_kinds(optim_kinds(), beside=OptimSection))


def _kinds(kinds: Kinds, *, beside: type[BaseModel]) -> Iterator[str]:
    for kind in sorted(kinds):
        options = kinds[kind]
        fields, path = options.model_fields, f"patch.{kind}" if beside is Patch else "optim"
        changed = [name for name in beside.model_fields if name in fields and _default(options, name) != "none"]
        own = [name for name in fields if name not in beside.model_fields]
        yield f"\n## `{kind}`\n\n{_prose(sys.modules[options.__module__].__doc__)}\n"
        if stated := [f"`{name} = {_default(options, name)}`" for name in changed if _default(options, name)]:
            yield f"\n{', '.join(stated)}\n"
        if own:
            yield f"\n{_table(options, own)}"
            yield from (text for name in own for text in _nested(name, options, level=3, path=path))


def _sections(model: type[BaseModel], *, level: int, path: str = "") -> Iterator[str]:
    """The table of a model, then those of the models in its fields, each with its path as heading."""
    title = f"`[{path}]`" if path else "Top level"
    yield f"\n{'#' * level} {title}\n\n{doc(model)}\n\n{_table(model)}"
    for name in model.model_fields:
        yield from _nested(name, model, level=level, path=path)


def _nested(name: str, model: type[BaseModel], *, level: int, path: str = "") -> Iterator[str]:
    field = model.model_fields[name]
    for found in _models(field.annotation):
        many = "Mapping" in str(field.annotation)
        yield from _sections(found, level=level, path=f"{path}{'.' * bool(path)}{name}{'.NAME' * many}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _table(model: type[BaseModel], names: list[str] | None = None) -> str:
    schema = model.model_json_schema()
    rows = []
    for name in model.model_fields if names is None else names:
        property_ = schema["properties"][name]
        words = property_.get("description", "")
        cells = (f"`{name}`", _type(property_, schema.get("$defs", {})), _code(_default(model, name)), words)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return _HEAD + "".join(rows)


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """A JSON schema in words: its type, bounds and choices."""
    if "anyOf" in schema:
        return " or ".join(_type(part, defs) for part in schema["anyOf"] if part.get("type") != "null")
    if "$ref" in schema:
        return _type(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{toml(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "properties" in schema:
        return "table"
    kind = schema.get("type")
    if pair := schema.get("prefixItems"):
        return f"list of {len(pair)}: {_type(pair[0], defs)}"
    if kind == "array":
        return f"list of {_type(schema['items'], defs)}" if schema.get("items") else "list"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"table of {_type(inner, defs)}" if isinstance(inner, dict) else "table"
    stated = {name: sign for name, sign in _BOUNDS.items() if name in schema}
    if "minimum" in stated:
        stated.pop("exclusiveMinimum", None)  # PositiveInt with a larger bound of the field
    bounds = " and ".join(f"{sign} {schema[name]:g}" for name, sign in stated.items())
    length = f"at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    pattern = f"matches `{schema['pattern']}`" if "pattern" in schema else ""
    return ", ".join(filter(None, (f"{kind or 'any'} {bounds}".strip(), length, pattern)))


def _default(model: type[BaseModel], name: str) -> str:
    """The default in TOML; "required" and "none" if there is no such value."""
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
        return toml(value) if value else "the defaults below"
    return "none" if value is None else toml(list(value) if isinstance(value, tuple) else value)


def _code(default: str) -> str:
    return default if default in ("required", "none", "the defaults below") else f"`{default}`"


def doc(thing: Any) -> str:
    """The docstring that a class, module or function states itself, as a paragraph."""
    return _prose(vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__)


def _prose(text: str | None) -> str:
    """A docstring as Markdown: its formulas and code as they are, no emphasis and no tags in the rest."""
    lines = (inspect.cleandoc(text) if text else "").splitlines()
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    parts = line.split("`")  # every second one is code
    parts[::2] = (part.replace("*", r"\*").replace("<", "&lt;") for part in parts[::2])
    return "`".join(parts)
