"""A module from anywhere in place of attention, the MLP or a block: any nn.Module from [B, T, C] to [B, T, C].

    [patch.module]
    target = "blocks.*.attn"
    use = "torch.nn:MultiheadAttention"
    args = { embed_dim = "$n_embd", num_heads = "$n_head", batch_first = true }
    call = { query = "$x", key = "$x", value = "$x", attn_mask = "$causal_mask", need_weights = false }

`args` are keyword arguments of the class, `call` those of its forward pass. A string with a dollar sign is replaced:
by a size of the model ($n_embd, ...), or in `call` also by a tensor ($x, ...). docs/mechanisms.md has the list.
"""

from __future__ import annotations

import hashlib
import math
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, field_validator
from torch import nn

from ratrain.config.find import did_you_mean
from ratrain.config.schema import ModelSpec
from ratrain.errors import OptionError
from ratrain.patches.foreign.layer import replacement
from ratrain.patches.foreign.recipe import Recipe
from ratrain.registry import Patch, register

_USE = r"^[^:\s][^:]*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
_KEYS = tuple(key for key in ModelSpec.model_fields if key not in ("parametrisation", "base"))
_SIZES = (*_KEYS, "head_dim", "n_hidden", "padded_vocab", "layer", "none")
_TENSORS = ("x", "causal_mask", "causal_bias", "positions", "rope")
_PACKAGES = {"fla": "flash-linear-attention", "mamba_ssm": "mamba-ssm"}  # distributions with another name
_COPIES = "modules"  # folder of a run that holds the files of its modules


@dataclass(frozen=True)
class Use:
    """A class or function by its place, a module or a file beside the manifest, and its name there."""

    place: str
    name: str
    file: Path | None = None  # None: a module that Python imports

    @classmethod
    def of(cls, text: str, folders: Sequence[Path], key: Sequence[str]) -> Use:
        """Finds the file or the package that `text`, PLACE:NAME, names. Raises OptionError at `key`."""
        place, _, name = text.rpartition(":")
        is_file = place.endswith(".py")
        if is_file or "." not in place:
            path = place if is_file else f"{place}.py"
            tried = [folder / part for folder in folders for part in (path, Path(_COPIES) / _copy(path))]
            if file := next((file for file in tried if file.is_file()), None):
                return cls(path, name, file.resolve())
            if is_file:
                where = f" (in {folders[0]})" if folders else ""
                raise OptionError(f"{place!r}: no such file beside the manifest{where}", *key)
        top = place.partition(".")[0]
        if not top.isidentifier() or find_spec(top) is None:
            raise OptionError(
                f"there is no package {top!r}, and no file {top}.py beside the manifest{_advice(top)}", *key
            )
        return cls(place, name)


@register("module")
class Module(Patch):
    """A module of another package, or of a file beside the manifest."""

    brings_code: ClassVar[bool] = True
    transfers: ClassVar[str] = "the draws and the fan-ins of a module from elsewhere are not known"
    parts: ClassVar[str] = "foreign"
    example: ClassVar[Mapping[str, Any]] = {
        "use": "torch.nn:MultiheadAttention",
        "args": {"embed_dim": "$n_embd", "num_heads": "$n_head", "batch_first": True},
        "call": {"query": "$x", "key": "$x", "value": "$x", "attn_mask": "$causal_mask", "need_weights": False},
    }

    target: str = "blocks.*.attn"
    use: str = Field(description="its class: PACKAGE.MODULE:CLASS, or FILE.py:CLASS beside the manifest")
    args: dict[str, Any] = Field(default={}, description="keyword arguments of the class")
    call: dict[str, Any] = Field(
        default={}, description="keyword arguments of a call; $x is the first if none names it"
    )
    _folders: tuple[Path, ...] = PrivateAttr(())

    @field_validator("use")
    @classmethod
    def _place(cls, use: str) -> str:
        return _required_use(use)

    @field_validator("args")
    @classmethod
    def _sizes(cls, args: dict[str, Any]) -> dict[str, Any]:
        _require_known(args, _SIZES)
        for key, use in _tables(args, ()):
            _required_use(use, f"{'.'.join((*key, 'use'))}: ")
        return args

    @field_validator("call")
    @classmethod
    def _tensors(cls, call: dict[str, Any]) -> dict[str, Any]:
        _require_known(call, (*_SIZES, *_TENSORS))
        return call

    def beside(self, folders: Sequence[Path]) -> Module:
        found = self.model_copy()
        found._folders = tuple(folders)
        list(found._uses())
        return found

    def at(self, site: str) -> Module:
        return self.model_copy(update={"target": site})

    def files(self) -> Mapping[str, Path]:
        return {f"{_COPIES}/{_copy(use.place)}": use.file for use in self._uses() if use.file}

    def packages(self) -> Mapping[str, str]:
        tops = {use.place.partition(".")[0] for use in self._uses() if not use.file}
        return {top: _version(top) for top in sorted(tops)}

    def closed(self) -> Patch | None:
        """Returns the patch itself if it is open from the start: then nothing of the base is left inside."""
        return None if self._is_switched else self

    @property
    def _is_switched(self) -> bool:
        return self.activation is not None and self.activation.kind != "at_once"

    def build(self, old: nn.Module, spec: ModelSpec) -> nn.Module:
        layer = re.match(r"blocks\.(\d+)", self.target)
        sizes = {name: getattr(spec, name) for name in _SIZES[:-2]} | {"layer": int(layer[1]) if layer else None}
        uses = {key: (use.place, use.name, use.file) for key, use in zip(self._keys(), self._uses(), strict=True)}
        recipe = Recipe(uses, self.args, sizes | {"none": None})
        return replacement(old, spec, recipe, call=self.call, place=self.target, switched=self._is_switched)

    def _keys(self) -> list[tuple[str, ...]]:
        return [(), *(key for key, _ in _tables(self.args, ()))]

    def _uses(self) -> Iterator[Use]:
        """Yields the module's `use`, then those of the tables in `args` in order. Raises OptionError."""
        yield Use.of(self.use, self._folders, ("use",))
        for key, use in _tables(self.args, ()):
            yield Use.of(use, self._folders, ("args", *key, "use"))


def _required_use(use: Any, where: str = "") -> str:
    """Returns `use`. Raises ValueError unless it is a place and a name."""
    if not isinstance(use, str) or not re.match(_USE, use):
        raise ValueError(f"{where}expected PACKAGE.MODULE:CLASS or FILE.py:CLASS, got {use!r}")
    return use


def _tables(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields key and `use` of every table below `value` that is an object: one with a key `use`."""
    if isinstance(value, dict):
        if key and "use" in value:
            yield key, value["use"]
        for name, child in value.items():
            yield from _tables(child, (*key, name))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _tables(child, (*key, str(index)))


def _require_known(value: Any, names: Sequence[str]) -> None:
    """Raises ValueError for a `$name` that is none of `names`, and for a number that is not finite."""
    if isinstance(value, dict):
        for child in value.values():
            _require_known(child, names)
    elif isinstance(value, list):
        for child in value:
            _require_known(child, names)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    elif isinstance(value, str) and value.startswith("$") and value[1:] not in names:
        near = did_you_mean(value[1:], names).replace("'", "'$", 1)
        raise ValueError(f"nothing is called {value!r}{near or f'; expected {_listed(names)}'}")


def _listed(names: Sequence[str]) -> str:
    return f"${', $'.join(names)}"


def _copy(path: str) -> str:
    """Returns the path of a file's copy in the folder of a run's modules: the same, unless it leads out of there."""
    leads_out = Path(path).is_absolute() or ".." in Path(path).parts
    return Path(path).name if leads_out else Path(path).as_posix()


def _advice(top: str) -> str:
    return f"; pip install {_PACKAGES.get(top, top)}" if top.isidentifier() else ""


def _version(top: str) -> str:
    """Returns the version of an installed package; of any other, as on PYTHONPATH, a digest of its source files."""
    spec = find_spec(top)
    places = [Path(place) for place in (spec and (spec.submodule_search_locations or [spec.origin or ""])) or ()]
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")]
    if places and any(places[0].resolve().is_relative_to(folder) for folder in installed):
        try:
            return metadata.version(_PACKAGES.get(top, top))
        except metadata.PackageNotFoundError:
            names = metadata.packages_distributions().get(top)  # reads every distribution: slow
            if names:
                return metadata.version(names[0])
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
