"""Reads a manifest file and merges it with all files that it extends; records the origin of each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratrain.config.find import did_you_mean, extendable, find_extended, find_manifest, find_scale, own_id
from ratrain.config.merge import Merge, Origin
from ratrain.config.parse import Layer, parse_file, parse_override
from ratrain.errors import Fault, ManifestError, MissingError

__all__ = ["OWN", "Origin", "Source", "find_manifest", "located", "read_source"]

MAX_CHAIN = 16  # files that extend one another
OWN = ("id", "title", "same_as", "origin")  # keys about the file itself; a file that extends it inherits none of them


@dataclass(frozen=True)
class Source:
    """A merged manifest: `origins` by dotted key, for values and tables; `files` ends with the requested one."""

    tree: dict[str, Any]
    origins: dict[str, Origin]
    files: tuple[Path, ...]
    labels: tuple[str, ...]

    @property
    def manifest(self) -> str:
        """The label of the requested file."""
        return self.labels[-1]


def read_source(
    path: Path,
    *,
    base: Path | None = None,
    changes: Sequence[Layer] = (),
    scale: str | None = None,
    overrides: Sequence[str | Layer] = (),
) -> Source:
    """Reads the manifest at `path` and merges its layers; each layer wins over the previous ones.

    The order is: the files that `path` extends, `path` itself, `changes` (layers of another file), `scale`, and
    `overrides` (KEY=VALUE, or layers of another file). `base` is a manifest below these, as if `path` extended it
    first: its changes to files that both extend persist. The variant's id then ends with the base's.

    Tables merge key by key, and any other value replaces. Two exceptions: a new `kind` of optimizer, pruning, patch or
    activation drops the inherited options of the old one; OWN keys are not inherited. `resolve` drops the inherited
    keys of a table in which exactly one key is set. A file that is reached twice counts once, at its first position.
    Raises ManifestError, MissingError or UsageError.
    """
    chain = _chain(Path(path), *([] if base is None else [base]))
    overlay = _overlay(scale) if scale is not None else []
    merged = Merge()
    for layer in chain[:-1]:
        merged.add(layer, without=OWN)
    for layer in (chain[-1], *changes):
        merged.add(layer)
    for layer in overlay:
        merged.add(layer, without=OWN)
    for override in overrides:
        merged.add(override if isinstance(override, Layer) else parse_override(override))
    if base is not None and chain[-1].path.resolve() != base.resolve() and isinstance(merged.tree.get("id"), str):
        merged.tree["id"] += f"-{own_id(base) or base.stem}"  # two variants of a study never share an id
    merged.drop_disabled()
    files = [*overlay, *chain]  # the manifest itself is last, even below an overlay
    paths, labels = zip(*((layer.path, layer.label) for layer in files), strict=True)
    return Source(merged.tree, merged.origins, paths, labels)


def _overlay(scale: str) -> list[Layer]:
    *below, top = _chain(find_scale(scale))
    tree = {"scale": top.path.stem, **top.tree}
    return [*below, Layer(top.label, tree, top.path, top.lines)]


def _chain(path: Path, *beneath: Path) -> list[Layer]:
    """Collects the layers of `path`, lowest first, over those of the files `beneath`."""
    done: dict[Path, Layer] = {}
    for file in beneath:
        _visit(parse_file(file), done, ())
    _visit(parse_file(path), done, ())
    return list(done.values())


def _visit(layer: Layer, done: dict[Path, Layer], above: tuple[Path, ...]) -> None:
    here = layer.path.resolve()
    if len(above) == MAX_CHAIN:
        raise layer.fault(f"more than {MAX_CHAIN} files extend one another", "extends")
    for name in _extended(layer):
        file = find_extended(name, layer.path)
        if file is None:
            near = did_you_mean(name, [known.name for known in extendable()])
            raise layer.fault(f"{name!r}: no such file beside this one, and no shipped manifest{near}", "extends")
        if file.resolve() in done:
            continue
        if file.resolve() in (*above, here):
            raise layer.fault(f"{name!r} extends this file in turn; expected no cycle", "extends")
        try:
            below = parse_file(file)
        except MissingError as error:
            raise layer.fault(str(error), "extends") from None
        _visit(below, done, (*above, here))
    done[here] = layer


def _extended(layer: Layer) -> list[str]:
    said = layer.tree.pop("extends", [])
    names = [said] if isinstance(said, str) else said
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise layer.fault("expected the name of a manifest, or a list of names", "extends")
    return names


def located(error: ManifestError, source: Source) -> ManifestError:
    """Adds the file and line of the key to faults without a location, such as those found while building."""

    def where(fault: Fault) -> Fault:
        origin = source.origins.get(fault.key) or source.origins.get(fault.key.rpartition(".")[0])
        return fault if fault.where or origin is None else Fault(str(origin), fault.key, fault.message)

    return ManifestError([where(fault) for fault in error.faults])
