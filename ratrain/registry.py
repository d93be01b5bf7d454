"""Kinds: what a manifest names and a file defines. A kind is the name of its module; the folder is the catalogue."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ratrain.config.identity import plain
from ratrain.config.read import Source
from ratrain.config.resolve import resolve
from ratrain.config.schema import ActivationSection, Manifest, ModelSpec, Section
from ratrain.errors import DataError, MissingError, UsageError
from ratrain.outline import PREFIX, WholeFileNeededError, is_absent, module_of, outline_file, outline_package

if TYPE_CHECKING:
    from torch import nn

_ROOT = Path(__file__).parent
_PLUGIN = "ratrain_plugin_"  # begins the module name of a file outside the package
_C = TypeVar("_C", bound=type)


class Patch(Section):
    """Options of a mechanism, and how it replaces each module that `target` matches.

    `target` is a pattern over site names (`blocks.*.attn.score`); a patch claims the smallest seam it needs.
    """

    kind: ClassVar[str]

    target: str
    activation: ActivationSection | None = None  # in place of the manifest's own

    @property
    def leaks(self) -> str | None:
        """Why it is not causal, where it reproduces something that was not; None: it is."""
        return None

    @property
    def anneals(self) -> ActivationSection | None:
        """The schedule of its buffers `anneal`, where it moves more than its activation."""
        return None

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        """What builds the modules for the sites that each pattern matches; a patch that needs two seams names both."""
        return {self.target: self.build}

    @abstractmethod
    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        """The module that stands in for `old`. Raises ValueError when the options do not fit `spec`.

        Called on the meta device. Keep the modules of `old` that stay in use, so that their weights, and the
        random draws that fill them, are those of the base model.
        """

    def closed(self) -> Patch | None:
        """What is left of it where s = 0; None: nothing, the base model."""
        return None

    def repack(self, model: nn.Module, site: str) -> bool:
        """Rearranges pretrained weights around `site` into the mechanism's reciprocal form, where it has one."""
        return False


def register(kind: str) -> Callable[[_C], _C]:
    """Mark a class as the one that its module defines; `kind` is the module's name."""

    def mark(cls: _C) -> _C:
        cls.kind = kind
        return cls

    return mark


Origin = str | Path | EntryPoint  # of a kind: a module of the package, a file, or what an installed package offers


class Kinds(Mapping[str, type[Section]]):
    """The kinds of one family, by file name; a file is imported when its kind is first asked for."""

    def __init__(self, packages: Iterable[str], *, folders: Iterable[Path] = (), group: str | None = None):
        self._sources: dict[str, Origin] = {}
        self._classes: dict[str, type[Section]] = {}
        for package in packages:
            for kind in _stems(package):
                self._add(kind, f"{package}.{kind}")
        for entry in _offered(group) if group else ():
            self._add(entry.name, entry)
        for folder in dict.fromkeys(Path(f).resolve() for f in folders):
            for file in sorted(folder.glob("*.py")):
                self._add(file.stem, file)

    def _add(self, kind: str, source: Origin) -> None:
        if kind.startswith("_"):
            return
        if kind in self._sources:
            raise UsageError(f"{source}: the kind {kind!r} exists already ({self._sources[kind]}); rename the file")
        self._sources[kind] = source

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, kind: object) -> bool:
        return kind in self._sources

    def __getitem__(self, kind: str) -> type[Section]:
        if kind not in self._classes:
            self._classes[kind] = _load(kind, self._sources[kind])
        return self._classes[kind]

    def source(self, kind: str) -> Origin:
        """Where the kind is defined."""
        return self._sources[kind]

    def outlines(self) -> Outlines:
        """The options of the same kinds, for those who build nothing."""
        return Outlines(self)


class Outlines(Mapping[str, type[Section]]):
    """The same kinds with their options alone: what they check and hold, from files that are not imported.

    A file of which there is no outline is imported. Use of an outlined class can raise WholeFileNeededError.
    """

    def __init__(self, kinds: Kinds):
        self._kinds = kinds
        self._classes: dict[str, type[Section]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, kind: object) -> bool:
        return kind in self._kinds

    def __getitem__(self, kind: str) -> type[Section]:
        if kind not in self._classes:
            self._classes[kind] = _outlined(kind, self._kinds.source(kind)) or self._kinds[kind]
        return self._classes[kind]


@cache
def _stems(package: str) -> tuple[str, ...]:
    """Of the files in a folder of the package."""
    return tuple(sorted(file.stem for file in _ROOT.joinpath(*package.split(".")[1:]).glob("*.py")))


@cache
def _offered(group: str) -> tuple[EntryPoint, ...]:
    """What installed packages offer: looking through all of them takes a while."""
    return tuple(entry_points(group=group))


def _load(kind: str, source: Origin) -> type[Section]:
    try:
        if isinstance(source, EntryPoint):
            return source.load()
        module = _import_file(kind, source) if isinstance(source, Path) else importlib.import_module(source)
    except Exception as error:
        if isinstance(source, str):
            raise  # a file of the package: a bug of ours
        raise DataError(f"{source}: cannot be imported: {type(error).__name__}: {error}") from error
    if found := _defined(kind, module):
        return found
    raise DataError(f"{source}: defines no class marked @register({kind!r})")


def _outlined(kind: str, source: Origin) -> type[Section] | None:
    try:
        if isinstance(source, EntryPoint):
            return None
        module = outline_file(_PLUGIN + kind, source) if isinstance(source, Path) else outline_package(source)
    except WholeFileNeededError:
        return None
    return _defined(kind, module)


def _defined(kind: str, module: ModuleType) -> type[Section] | None:
    """The class that the module marks as the kind."""
    for value in vars(module).values():
        if is_absent(value) or not isinstance(value, type):
            continue
        if issubclass(value, Section) and value.__dict__.get("kind") == kind:
            return value
    return None


def _import_file(kind: str, file: Path) -> ModuleType:
    name = f"{_PLUGIN}{kind}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    spec.loader.exec_module(module)
    return module


def plugin_files(options: Iterable[Section]) -> list[Path]:
    """The files outside the package that define the kinds of `options`, each once."""
    modules = [module_of(type(option)) for option in options]
    files = [str(module.__file__) for module in modules if module.__name__.removeprefix(PREFIX).startswith(_PLUGIN)]
    return [Path(file) for file in dict.fromkeys(files)]


def patch_kinds(folders: Iterable[Path] = (), *, beside: Iterable[Path] = ()) -> Kinds:
    """Every patch: the package's, the legacy ones, installed plug-ins, the files of `folders`, and those of patches/
    `beside` each manifest file, where there is such a folder.

    Raises MissingError when one of `folders` is not there.
    """
    folders = list(folders)
    for folder in folders:
        if not Path(folder).is_dir():
            raise MissingError(f"{folder}: no such folder of patches")
    own = [folder for file in beside if (folder := file.parent / "patches").is_dir()]
    return Kinds(("ratrain.patches", "ratrain.legacy"), folders=[*own, *folders], group="ratrain.patches")


def optim_kinds() -> Kinds:
    """Every optimizer: one file each in `recipe/optim`."""
    return Kinds(("ratrain.recipe.optim",))


def declared(source: Source, patches: Kinds) -> Manifest:
    """The manifest that `source` describes, from outlines of its kinds: nothing can be built from it, and no torch is
    imported for it, nor for its refusal. Raises what `resolve` raises.
    """
    optimizers = optim_kinds()
    try:
        manifest = resolve(source, patches=patches.outlines(), optimizers=optimizers.outlines())
        plain(manifest)  # options also say how they are written
        return manifest
    except WholeFileNeededError:
        return resolve(source, patches=patches, optimizers=optimizers)
