"""Finds manifests by path, by name in the shipped folder, or by id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ratrain.config.parse import SHIPPED, parse_file
from ratrain.errors import MissingError, RatrainError, UsageError

SCALES = SHIPPED / "scale"


def shipped() -> tuple[Path, ...]:
    """Returns every shipped manifest of a variant in natural order: v2 before v10, the top folder first."""
    return _variants(SHIPPED)


@cache  # sorting costs more than listing the files, and every `extends` looks its names up here
def _variants(folder: Path) -> tuple[Path, ...]:
    apart = {*SCALES.glob("*.toml"), *ablations(), *ladders()}
    return tuple(sorted((file for file in folder.rglob("*.toml") if file not in apart), key=_reading_order))


def ablations() -> list[Path]:
    """Returns every shipped ablation manifest, for `--ablate`."""
    return sorted(SHIPPED.glob("ablation*.toml"))


def ladders() -> list[Path]:
    """Returns every shipped ladder manifest, for `--ladder`."""
    return sorted(SHIPPED.glob("ladder*.toml"))


def find_among(name: str, files: list[Path], kind: str) -> Path:
    """Finds a file of several manifests, a study or a ladder by `kind`: a path, or the name of a shipped file.

    Raises MissingError.
    """
    if os.path.isfile(name):
        return Path(name)
    names = {spelling: file for file in files for spelling in (file.name, file.stem, f"manifests/{file.name}")}
    if name in names:
        return names[name]
    hint = did_you_mean(name, names) or f"; shipped are {', '.join(file.stem for file in files)}"
    raise MissingError(f"{name}: no such {kind}{hint}")


def scales() -> list[str]:
    """Returns the shipped names for `--scale`."""
    return sorted(file.stem for file in SCALES.glob("*.toml"))


def extendable() -> list[Path]:
    """Returns every shipped file that `extends` can name."""
    return [*shipped(), *sorted(SCALES.glob("*.toml"))]


def find_manifest(name: str) -> Path:
    """Finds the manifest `name`: a path, a file name or stem in the shipped folder, or an id. Raises MissingError."""
    if os.path.isfile(name):
        return Path(name)
    if file := find_in_package(name):
        return file
    files = shipped()
    for file in files:
        if name in _names(file):
            return file
    for file in files:
        if own_id(file) == name:
            return file
    beside = [file.name for file in Path.cwd().glob("*.toml")] if name.endswith(".toml") else []
    known = [*beside, *filter(None, map(own_id, files)), *(spelling for file in files for spelling in _names(file))]
    what = "is a folder, not a manifest" if os.path.isdir(name) else "no such manifest, by path, name or id"
    hint = did_you_mean(name, known) or "; `ratrain list` shows them all"
    raise MissingError(f"{name}: {what}{hint}")


def find_scale(name: str) -> Path:
    """Finds the overlay `name`: a shipped scale, or a path. Raises UsageError with the list of scales."""
    file = SCALES / f"{name}.toml"
    if name in scales():
        return file
    if os.path.isfile(name):
        return Path(name)
    if file := find_in_package(name):
        return file
    raise UsageError(f"--scale {name}: no such scale; expected a path or one of {', '.join(scales())}")


def find_in_package(name: str) -> Path | None:
    """Finds the shipped file of a path such as `legacy/defconfigs/x`, if the links at the top of a clone are absent;
    None without one."""
    file = SHIPPED.parent / name
    known = Path(name).parts[:1] in (("manifests",), ("legacy",)) and ".." not in Path(name).parts
    return file if known and os.path.isfile(file) else None


def find_foreign(name: str) -> Path | None:
    """Finds the file `name`, by path or in the package, unless its ending is that of a manifest or of weights; None
    without one."""
    if name.endswith((".toml", ".safetensors")):
        return None
    return Path(name) if os.path.isfile(name) else find_in_package(name)


def find_extended(name: str, file: Path) -> Path | None:
    """Finds the file of `extends = name` in `file`: a path from its folder, else a shipped manifest, else None."""
    near = file.parent / name
    if os.path.isfile(near):
        return near
    for known in extendable():
        if name in _names(known):
            return known
    return None


def own_id(file: Path) -> str | None:
    """Returns the id in `file` itself; None if it has none or cannot be read."""
    try:
        found = parse_file(file).tree.get("id")
    except RatrainError:
        return None
    return found if isinstance(found, str) else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest of `known`, or an empty string."""
    import difflib  # imported here, since it costs start-up time and few commands need it

    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(file: Path) -> tuple[str, ...]:
    inside = file.relative_to(SHIPPED)
    short = inside.with_suffix("").as_posix()
    return (file.name, file.stem, inside.as_posix(), short, f"manifests/{inside.as_posix()}")


def _reading_order(file: Path) -> tuple[int, list[tuple[int, str]]]:
    inside = file.relative_to(SHIPPED)
    words = re.findall(r"\d+|\D+", inside.as_posix())
    return len(inside.parts), [(int(word), "") if word.isdigit() else (-1, word) for word in words]
