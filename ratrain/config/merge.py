"""Merges layers into one tree: the rules of replacing and merging, and the origin of each remaining key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ratrain.config.find import did_you_mean
from ratrain.config.parse import Layer
from ratrain.config.recall import read_keys
from ratrain.config.toml import dotted

ANY_OPTIMIZER = ("weight_decay", "clip")  # keys that every kind of optimizer has
ONE_PRUNING = ("score",)  # keys of only one kind of pruning


@dataclass(frozen=True)
class Origin:
    """The origin of a value: a file and its line, or `--set`."""

    file: str
    line: int | None = None
    layer: int = field(default=0, compare=False)  # position of the layer that set the value; later layers win

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Merge:
    """The layers merged so far, with the origin of each key."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[str, Origin] = {}
        self._layers = 0

    def add(self, layer: Layer, *, without: Sequence[str] = ()) -> None:
        said = {name: value for name, value in layer.tree.items() if name not in without}
        self._check_patches(said.get("patch"), layer)
        self._layers += 1
        self._merge(self.tree, said, (), layer)

    def _merge(self, into: dict[str, Any], said: Mapping[str, Any], at: tuple[str, ...], layer: Layer) -> None:
        for name, value in said.items():
            key = (*at, name)
            if not (isinstance(value, dict) and isinstance(into.get(name), dict)) or key == ("data", "mixture"):
                self._forget(into, key)
            if isinstance(value, dict):
                below = into.setdefault(name, {})
                self._drop_other_kind(below, value, key)
                self._merge(below, value, key, layer)
            else:
                into[name] = value
            self.origins[dotted(key)] = Origin(layer.label, layer.lines.get(key), self._layers)

    def _drop_other_kind(self, below: dict[str, Any], said: Mapping[str, Any], key: tuple[str, ...]) -> None:
        """Drops the keys of the old kind if a layer sets another optimizer, pruning, patch, activation or source."""
        if key == ("data",) and "source" in said and below.get("source") != said["source"]:
            for name in below.keys() - read_keys(str(said["source"])):
                self._forget(below, (*key, name))
        has_kinds = key in (("optim",), ("prune",)) or key[:-1] == ("patch",) or _is_activation(key)
        if not below or "kind" not in said or not has_kinds:
            return
        default = "adamw" if key == ("optim",) else "at_once" if _is_activation(key) else key[-1]
        default = said["kind"] if key == ("prune",) else default  # without a kind, no pruning has been chosen yet
        if below.get("kind", default) != said["kind"]:
            kept = ANY_OPTIMIZER if key == ("optim",) else {*below} - {*ONE_PRUNING} if key == ("prune",) else ()
            for name in [name for name in below if name not in kept]:
                self._forget(below, (*key, name))

    def _forget(self, into: dict[str, Any], key: tuple[str, ...]) -> None:
        if key[-1] in into:
            for gone in _keys(into.pop(key[-1]), key):
                self.origins.pop(dotted(gone), None)

    def _check_patches(self, said: Any, layer: Layer) -> None:
        """Refuses changes without effect: options of a dropped patch, and dropping a patch that is not inherited.
        Raises ManifestError."""
        known = self.tree.get("patch", {})
        for name, options in said.items() if isinstance(said, dict) and isinstance(known, dict) else ():
            if not isinstance(options, dict):
                continue
            key, inherited = ("patch", name), known.get(name, {})
            if "enabled" in options and not isinstance(options["enabled"], bool):
                raise layer.fault("expected true or false", *key, "enabled")
            if options == {"enabled": False} and name not in known:
                raise layer.fault(f"no such patch is inherited{did_you_mean(name, known)}", *key)
            if isinstance(inherited, dict) and inherited.get("enabled") is False and "enabled" not in options:
                where = self.origins[dotted((*key, "enabled"))]
                raise layer.fault(f"{where} disables this patch; set enabled = true to restore it", *key)

    def drop_disabled(self) -> None:
        """Removes the patches with `enabled = false`, and the key `enabled` from the patches with true."""
        patches = self.tree.get("patch")
        if not isinstance(patches, dict):
            return
        for name, options in list(patches.items()):
            if isinstance(options, dict) and "enabled" in options:
                if options["enabled"]:
                    self._forget(options, ("patch", name, "enabled"))
                else:
                    self._forget(patches, ("patch", name))


def _is_activation(key: tuple[str, ...]) -> bool:
    return key == ("activation",) or (len(key) == 3 and key[0] == "patch" and key[2] == "activation")


def _keys(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield key
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _keys(child, (*key, name))
