"""Imports foreign code by file or module, calls it with small sizes, and reports its failures by file and line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from ratrain.config.find import did_you_mean
from ratrain.errors import DataError, MissingError, RatrainError, UnavailableError, UsageError

# sizes under the names used by nanoGPT, transformers, litgpt, torchtitan and related projects
SMALL = {
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth"), 2),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_attention_heads"), 2),
    **dict.fromkeys(("n_kv_head", "n_kv_heads", "num_kv_heads", "num_key_value_heads", "n_query_groups"), 2),
    **dict.fromkeys(("n_embd", "n_embed", "embed_dim", "embedding_dim", "hidden_size", "d_model", "dim"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim"), 128),
    **dict.fromkeys(("vocab_size", "n_vocab", "num_embeddings", "padded_vocab_size"), 128),
    **dict.fromkeys(("block_size", "n_positions", "max_position_embeddings", "context_length", "n_ctx"), 64),
    **dict.fromkeys(("max_seq_len", "seq_len", "sequence_len", "max_length"), 64),
}
_CONFIG_WORDS = ("config", "cfg", "conf", "args", "hparams", "params")


@dataclass(frozen=True)
class Target:
    """The callable named by FILE.py:NAME or MODULE:NAME, and its module."""

    word: str
    name: str
    call: Callable[..., Any]
    module: ModuleType


def find_target(word: str) -> Target:
    """Imports the target named by `word`. Raises UsageError, MissingError, DataError or UnavailableError."""
    place, colon, name = word.rpartition(":")
    if not (colon and place and name):
        raise UsageError(f"{word!r}: expected FILE.py:NAME or MODULE:NAME, such as model.py:GPT")
    is_file = place.endswith(".py") or Path(place).exists()
    if is_file and not Path(place).is_file():
        raise MissingError(f"{place}: no such file")
    with foreign_code(place, "importing it"):
        module = _import_file(Path(place)) if is_file else _import_module(place)
    try:
        call = attrgetter(name)(module)
    except AttributeError:
        raise UsageError(f"{place}: defines no {name}{did_you_mean(name, vars(module))}") from None
    if not callable(call):
        raise UsageError(f"{word}: is a {type(call).__name__}; expected a class or a function that makes a model")
    return Target(word, name, call, module)


def construct(target: Target, given: Mapping[str, Any]) -> tuple[Any, str]:
    """Calls the target; returns the result and the call as text.

    Sizes that the target or its config class takes are those of SMALL, unless `given` sets them. Raises UsageError for
    an unknown name in `given`, a missing argument, or an unknown config class.
    """
    config = _config_class(target)
    arguments = _arguments(config or target.call, given, target)
    said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    text = f"{target.name}({config.__name__}({said}))" if config else f"{target.name}({said})"
    with foreign_code(target.word, f"calling {text}"):
        return (target.call(config(**arguments)) if config else target.call(**arguments)), text


@contextlib.contextmanager
def foreign_code(place: str, doing: str) -> Iterator[None]:
    """Runs foreign code in the block: its stdout goes to stderr, and its errors become one located message.

    Raises UnavailableError for a missing module, DataError for any other error but a RatrainError.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except RatrainError:
        raise
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{where(error, place)}: {error.msg}; while {doing}") from error
    except (Exception, SystemExit) as error:
        raise DataError(f"{where(error, place)}: {described(error)}; while {doing}") from error


def described(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")


def where(error: BaseException, place: str) -> str:
    """Returns `file:line` of an error: of its innermost frame in `place`, else in any other foreign file; else
    `place`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    file = Path(place if Path(place).is_file() else place.rpartition(":")[0]).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(file)]
    foreign = [frame for frame in frames if not _is_library(frame.filename)]
    found = (own or foreign)[-1:]
    return f"{found[0].filename}:{found[0].lineno}" if found else place


def _is_library(filename: str) -> bool:
    roots = [str(Path(str(sys.modules[name].__file__)).parent) for name in ("ratrain", "torch") if name in sys.modules]
    return filename.startswith((*roots, "<")) or filename in (importlib.__file__, contextlib.__file__)


def _import_file(file: Path) -> ModuleType:
    """Imports a file, as a part of its package if it is in one, so that its own imports work."""
    file = file.resolve()
    root, names = file.parent, [file.stem]
    while (root / "__init__.py").exists():
        root, names = root.parent, [root.name, *names]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if len(names) > 1:
        return importlib.import_module(".".join(names))
    name = f"audited_{file.stem}"  # its own name could collide with another module
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise MissingError(f"{name}: no such file and no such module; expected FILE.py:NAME or MODULE:NAME")
    return importlib.import_module(name)


def _config_class(target: Target) -> type | None:
    """Returns the config class of a target whose first required argument is a config; None if the target takes none.
    Raises UsageError if the class is unknown."""
    required = [p for p in _parameters(target.call) if p.default is p.empty]
    if not required or (required[0].name not in _CONFIG_WORDS and not _is_config(_hint(target.call, required[0].name))):
        return None
    named = [getattr(target.module, f"{target.name}{end}", None) for end in ("Config", "Args")]
    inside = [v for v in vars(target.module).values() if _is_config(v)]
    hint = _hint(target.call, required[0].name)
    candidates = [getattr(target.call, "config_class", None), hint, *named, *(inside if len(inside) == 1 else ())]
    found = next((c for c in candidates if isinstance(c, type) and c not in (dict, object)), None)
    if found is None:
        raise UsageError(
            f"{target.word}: takes {required[0].name!r} of an unknown class; "
            "name a function that makes the model, FILE.py:make_model"
        )
    return found


def _is_config(value: Any) -> bool:
    return isinstance(value, type) and (dataclasses.is_dataclass(value) or value.__name__.endswith(("Config", "Args")))


def _hint(call: Callable[..., Any], name: str) -> Any:
    # for a class also the bases, since a subclass that only passes a config on may lack the annotation
    functions = [base.__init__ for base in call.__mro__] if isinstance(call, type) else [call]
    for function in functions:
        try:
            found = typing.get_type_hints(function).get(name)
        except Exception:  # annotations may use names that only a type checker imports
            continue
        if found is not None:
            return found
    return None


def _parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters that accept a keyword."""
    try:
        found = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _arguments(call: Callable[..., Any], given: Mapping[str, Any], target: Target) -> dict[str, Any]:
    parameters = _parameters(call)
    names = [p.name for p in parameters]
    free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(call).parameters.values()) if names else False
    for name in given:
        if name not in names and not free:
            known = ", ".join(names) or "no arguments"
            raise UsageError(f"--set {name}: {target.word} takes {known}{did_you_mean(name, names)}")
    arguments = {name: SMALL[name] for name in names if name in SMALL} | dict(given)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in arguments]
    if missing:
        raise UsageError(f"{target.word}: needs {', '.join(missing)}; --set {missing[0]}=... gives it")
    return arguments
