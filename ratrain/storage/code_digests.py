"""Digests of the source files that a run depends on: its result follows from its manifest *and* this code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ratrain.config.schema import Manifest
from ratrain.outline import module_of
from ratrain.registry import run_files

_SHOWN = 3  # changed files that a message names
_ROOT = Path(__file__).parents[1]
# sources that affect the results of every run; files of the manifest's kinds are added, and private modules beside them
_ALWAYS = (
    "compression/*.py",
    "data/corpus.py",
    "data/sampling.py",
    "data/shards.py",
    "data/tokenizer.py",
    "engine/*.py",
    "engine/parts/*.py",
    "kernels/*/*.py",
    "kernels/products.py",
    "machine/attention.py",
    "machine/distributed.py",
    "machine/products.py",
    "machine/rng.py",
    "model/*.py",
    "recipe/*.py",
    "recipe/prune/*.py",
)


def code_digests(manifest: Manifest) -> dict[str, str]:
    """Returns the SHA-256 of every source file of the run, by its path in the package, or in the run folder for files
    outside of it; and the versions of packages whose modules the manifest names."""
    files = {str(Path("ratrain", file.relative_to(_ROOT))): file for file in _package_files(manifest)}
    files |= run_files(manifest.patch.values())
    versions = {f"package {name}": told for patch in manifest.patch.values() for name, told in patch.packages().items()}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sorted(files.items())} | versions


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Returns the files that were changed, added or removed."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def some(files: Sequence[str]) -> str:
    """Formats the names of changed files; lists only a few, since an update of ratrain changes nearly all."""
    shown = [*files[:_SHOWN], *([f"{len(files) - _SHOWN} more files"] if len(files) > _SHOWN else [])]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if shown[1:] else "".join(shown)


def _package_files(manifest: Manifest) -> Iterator[Path]:
    for pattern in _ALWAYS:
        yield from _ROOT.glob(pattern)
    for options in (manifest.optim, *manifest.patch.values()):
        for kind in type(options).__mro__:  # a kind may subclass another
            file = Path(str(getattr(module_of(kind), "__file__", None)))
            if file.is_relative_to(_ROOT) and file.parent != _ROOT / "config" and file != _ROOT / "registry.py":
                yield file
                yield from file.parent.glob("_[a-z]*.py")  # shared by the kinds of its folder
                if folder := vars(kind).get("parts"):
                    yield from (file.parent / folder).glob("*.py")
