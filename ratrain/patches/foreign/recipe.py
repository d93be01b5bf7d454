"""Makes foreign modules: imports a class, fills in its arguments, constructs it reproducibly."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ratrain.errors import OptionError

_CHECKOUT = Path(__file__).parents[3]
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A class and its arguments, from which equal modules are made.

    `uses` holds place, name and file of the class, at (), and of the tables of `args` that stand for objects, by key;
    `sizes` the values of names with a dollar sign.
    """

    uses: Mapping[_Key, tuple[str, str, Path | None]]
    args: Mapping[str, Any]
    sizes: Mapping[str, Any]

    def made(self, device: str, *, seed: int = 0) -> nn.Module:
        """Returns a new module on `device`, its random numbers drawn from `seed` alone. Raises OptionError.

        A class that cannot be constructed on the meta device is constructed on the CPU and moved there.
        """
        with apart(seed):
            try:
                with torch.device(device):
                    return self._object((), self.args)
            except Exception:
                if device != "meta":
                    raise
                with torch.device("cpu"):
                    return self._object((), self.args).to("meta")

    def _object(self, key: _Key, args: Mapping[str, Any]) -> Any:
        """Calls the class at `key`, with a table's other keys as arguments."""
        place, name, file = self.uses[key]
        at = ("args", *key, "use") if key else ("use",)
        with torch.device("cpu"):  # constants of the module itself
            found = _found(place, name, file, at)
        text = f"{place}:{name}"
        if not callable(found) or (not key and isinstance(found, type) and not issubclass(found, nn.Module)):
            raise OptionError(f"{text} is no {'class' if key else 'nn.Module'}", *at)
        values = {name: self._value((*key, name), value) for name, value in args.items() if not (key and name == "use")}
        try:
            made = found(**values)
        except OptionError:
            raise
        except (Exception, SystemExit) as error:
            raise OptionError(f"{text} refuses them: {told(error)}", "args", *key) from error
        if key:
            return made
        if not isinstance(made, nn.Module):
            raise OptionError(f"{text} returns {type(made).__name__}, which is no nn.Module", *at)
        if lazy := [name for name, p in made.named_parameters() if is_lazy(p)]:
            raise OptionError(
                f"{text} has {', '.join(lazy)} without a shape; expected sizes in args, no lazy layers", *at
            )
        return made

    def _value(self, key: _Key, value: Any) -> Any:
        if isinstance(value, dict) and "use" in value:
            return self._object(key, value)
        if isinstance(value, dict):
            return {name: self._value((*key, name), child) for name, child in value.items()}
        if isinstance(value, list):
            return [self._value((*key, str(index)), child) for index, child in enumerate(value)]
        return self.sizes[value[1:]] if isinstance(value, str) and value.startswith("$") else value


@contextlib.contextmanager
def apart(seed: int) -> Iterator[None]:
    """Seeds every global generator and poisons uninitialised memory with NaN; restores all of it afterwards.

    Text that a constructor prints goes to stderr: stdout may be a stream of events.
    """
    deterministic: Any = torch.utils.deterministic
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    dtype, drawn, state = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda), contextlib.redirect_stdout(sys.stderr):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.use_deterministic_algorithms(True, warn_only=True)  # with `fills`, torch.empty then holds NaN
        fills, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            deterministic.fill_uninitialized_memory = fills
            torch.set_default_dtype(dtype)
            random.setstate(drawn)
            np.random.set_state(state)


def _found(place: str, name: str, file: Path | None, at: _Key) -> Any:
    """Imports a file or module and returns its attribute `name`. Raises OptionError."""
    try:
        found: Any = _import_file(file) if file else _import_package(place)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and file is not None
        more = "; a file beside the manifest holds all of its code, or imports installed packages" if missing else ""
        raise OptionError(f"{file or place}: cannot be imported: {told(error)}{more}", *at) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"{file or place} has no {name}", *at)
        found = getattr(found, part)
    return found


def _import_file(file: Path) -> ModuleType:
    """Imports a file; another content of it is another module."""
    name = f"ratrain_module_{file.stem}_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _import_package(place: str) -> ModuleType:
    if place in sys.modules:
        return sys.modules[place]
    path = list(sys.path)
    # the folder `kernels` of a checkout would pass for the package of that name, which transformers asks for
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != _CHECKOUT]
    try:
        return importlib.import_module(place)
    finally:
        sys.path[:] = path


def told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
