"""The manifests that are measured."""

from __future__ import annotations

from collections.abc import Iterable

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.registry import optim_kinds, patch_kinds


def manifest_of(name: str, *, scale: str | None = None, overrides: Iterable[str] = ()) -> Manifest:
    """Resolves a manifest by id or path, with its own patches/ folder, at a scale and with overrides KEY=VALUE."""
    source = read_source(find_manifest(name), scale=scale, overrides=list(overrides))
    return resolve(source, patches=patch_kinds(beside=source.files), optimizers=optim_kinds())
