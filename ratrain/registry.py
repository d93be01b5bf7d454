"""Kinds: option classes that manifests name and files define. A kind is named after its module.

The files in a folder are the list of kinds.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ratrain.config.identity import plain
from ratrain.config.read import Source
from ratrain.config.resolve import resolve
from ratrain.config.schema import ActivationSection, Manifest, ModelSpec, Section
from ratrain.errors import DataError, MissingError, UsageError
from ratrain.outline import PREFIX, WholeFileNeededError, is_absent, module_of, outline_file, outline_package
from ratrain.plugins import offered

if TYPE_CHECKING:
    from torch import nn

_ROOT = Path(__file__).parent
_PLUGIN = "ratrain_plugin_"  # prefix of the module names of files outside the package
_C = TypeVar("_C", bound=type)


class Patch(Section):
    """Base class of patches: the options of a mechanism, and the replacement of each module that `target` matches.

    `target` is a pattern over site names (`blocks.*.attn.score`); a patch claims the smallest seam it needs.
    """

    kind: ClassVar[str]

    brings_code: ClassVar[bool] = False  # whether its options name code from outside of the package
    parts: ClassVar[str | None] = None  # folder beside the kind's file that holds more of its code
    example: ClassVar[Mapping[str, Any]] = {}  # values of the options without a default, to check the kind with
    transfers: ClassVar[str] = ""  # why its learning rates do not transfer under muP, which refuses it; empty: they do

    target: str
    activation: ActivationSection | None = None  # replaces the manifest's [activation]

    def beside(self, folders: Sequence[Path]) -> Patch:
        """Returns the patch with the folders of the manifest's files, the requested one first; files that its options
        name are looked up there. Raises OptionError."""
        return self

    def under(self, activation: ActivationSection) -> Patch:
        """Returns the patch with its schedule: its own, else the manifest's `activation`."""
        return self if self.activation else self.model_copy(update={"activation": activation})

    def at(self, site: str) -> Patch:
        """Returns the patch as it is built at one site, where that matters."""
        return self

    def files(self) -> Mapping[str, Path]:
        """Returns the source files that the options name, by their path in a run folder."""
        return {}

    def packages(self) -> Mapping[str, str]:
        """Returns the version, or a digest of the source, of each installed package that the options name."""
        return {}

    @property
    def leaks(self) -> str | None:
        """The reason why the mechanism is not causal, if it reproduces a non-causal one; None if it is causal."""
        return None

    @property
    def anneals(self) -> ActivationSection | None:
        """The schedule of the buffers `anneal`, if the patch has any; None otherwise."""
        return None

    def builders(self) -> Mapping[str, Callable[[nn.Module, ModelSpec], nn.Module]]:
        """Returns builders of modules by site pattern; a patch of two seams returns both patterns."""
        return {self.target: self.build}

    @abstractmethod
    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        """Builds the module that replaces `old`. Raises ValueError if the options do not fit `spec`.

        Called on the meta device. Reuse the modules of `old` that are still needed, so that their weights and random
        draws are those of the base model.
        """

    def closed(self) -> Patch | None:
        """Returns the patch that remains at s = 0; None if that is the base model."""
        return None

    def repack(self, model: nn.Module, site: str) -> bool:
        """Rearranges pretrained weights around `site` into the mechanism's reciprocal form, if it has one.

        Returns whether it did.
        """
        return False


def register(kind: str) -> Callable[[_C], _C]:
    """Returns a decorator that marks the class of a module's kind; `kind` is the module's name."""

    def mark(cls: _C) -> _C:
        cls.kind = kind
        return cls

    return mark


Origin = str | Path | EntryPoint  # of a kind: a module of the package, a file, or an installed package's entry point


class Kinds(Mapping[str, type[Section]]):
    """The kinds of one family, by file name; a file is imported when its kind is first looked up."""

    def __init__(self, packages: Iterable[str], *, folders: Iterable[Path] = (), group: str | None = None):
        self._sources: dict[str, Origin] = {}
        self._classes: dict[str, type[Section]] = {}
        for package in packages:
            for kind in _stems(package):
                self._add(kind, f"{package}.{kind}")
        for entry in offered(group) if group else ():
            self._add(entry.name, entry)
        for folder in dict.fromkeys(Path(f).resolve() for f in folders):
            for file in sorted(folder.glob("*.py")):
                self._add(file.stem, file)

    def _add(self, kind: str, source: Origin) -> None:
        if kind.startswith("_"):
            return
        if kind in self._sources:
            there = _place(self._sources[kind])
            raise UsageError(f"{_place(source)}: the kind {kind!r} exists already ({there}); rename the file")
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
        """Returns the origin of a kind: module, file or entry point."""
        return self._sources[kind]

    def outlines(self) -> Outlines:
        """Returns the option classes of the same kinds, for callers that build no model."""
        return Outlines(self)


class Outlines(Mapping[str, type[Section]]):
    """The same kinds with their option classes only, from outlines of their files instead of imports.

    A file without an outline is imported. Use of an outlined class can raise WholeFileNeededError.
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
    """Returns the sorted stems of the source files in a subpackage."""
    return tuple(sorted(file.stem for file in _ROOT.joinpath(*package.split(".")[1:]).glob("*.py")))


def _load(kind: str, source: Origin) -> type[Section]:
    try:
        if isinstance(source, EntryPoint):
            return source.load()
        module = _import_file(kind, source) if isinstance(source, Path) else importlib.import_module(source)
    except Exception as error:
        if isinstance(source, str):
            raise  # a file of the package: a bug in ratrain
        raise DataError(f"{_place(source)}: cannot be imported: {type(error).__name__}: {error}") from error
    if found := _defined(kind, module):
        return found
    raise DataError(f"{source}: defines no class marked @register({kind!r})")


def _place(source: Origin) -> str:
    return source.value if isinstance(source, EntryPoint) else str(source)


def _outlined(kind: str, source: Origin) -> type[Section] | None:
    try:
        if isinstance(source, EntryPoint):
            found = vars(outline_package(source.module)).get(source.attr)
            return found if not is_absent(found) and isinstance(found, type) else None
        module = outline_file(_PLUGIN + kind, source) if isinstance(source, Path) else outline_package(source)
    except WholeFileNeededError:
        return None
    return _defined(kind, module)


def _defined(kind: str, module: ModuleType) -> type[Section] | None:
    """Returns the class that the module registers as `kind`, or None."""
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
    """Returns the files outside the package that define the kinds of `options`, without duplicates."""
    modules = [module_of(type(option)) for option in options]
    files = [str(module.__file__) for module in modules if module.__name__.removeprefix(PREFIX).startswith(_PLUGIN)]
    return [Path(file) for file in dict.fromkeys(files)]


def run_files(patches: Iterable[Patch]) -> dict[str, Path]:
    """Returns the files outside the package that `patches` consist of, by their path in a run folder."""
    patches = list(patches)
    files = {f"patches/{file.name}": file for file in plugin_files(patches)}
    return files | {name: file for patch in patches for name, file in patch.files().items()}


def is_shipped(options: type[Section]) -> bool:
    """Returns whether a kind belongs to the package, and not to a plug-in."""
    return module_of(options).__name__.removeprefix(PREFIX).startswith("ratrain.")


def is_ours(patch: Patch) -> bool:
    """Returns whether all code of a patch is of the package, whose tests check it."""
    return is_shipped(type(patch)) and not patch.brings_code


def patch_kinds(folders: Iterable[Path] = (), *, beside: Iterable[Path] = ()) -> Kinds:
    """Returns all patch kinds of the package, entry points (legacy among them), `folders`, and patches/ folders.

    The latter are the folders patches/ next to the manifest files in `beside`, if they exist. Raises MissingError if
    one of `folders` does not exist.
    """
    folders = list(folders)
    for folder in folders:
        if not Path(folder).is_dir():
            raise MissingError(f"{folder}: no such folder of patches")
    own = [folder for file in beside if (folder := file.parent / "patches").is_dir()]
    return Kinds(("ratrain.patches",), folders=[*own, *folders], group="ratrain.patches")


def optim_kinds() -> Kinds:
    """Returns all optimizer kinds: one file each in `recipe/optim`."""
    return Kinds(("ratrain.recipe.optim",))


def declared(source: Source, patches: Kinds) -> Manifest:
    """Resolves the manifest of `source` from outlines of its kinds, without a torch import.

    No model can be built from it. If the outlines do not suffice, the kinds are imported. Raises the errors of
    `resolve`.
    """
    optimizers = optim_kinds()
    try:
        manifest = resolve(source, patches=patches.outlines(), optimizers=optimizers.outlines())
        plain(manifest)  # serialization of options may need the whole file, too
        return manifest
    except WholeFileNeededError:
        return resolve(source, patches=patches, optimizers=optimizers)
