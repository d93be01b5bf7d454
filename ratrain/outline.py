"""Loads the option classes of a source file without the rest of it: no torch import, no nn.Module classes.

An outline executes a file's statements as an import would, except imports of heavy packages and statements that need
them: the names that those bind become absent. Any use of an absent name raises WholeFileNeededError, and the caller
then imports the whole file. So an outline is either exact or unavailable. It is built anew in each process.
"""

from __future__ import annotations

import ast
import importlib
import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pydantic import BaseModel

PREFIX = "ratrain_outline_"  # prefix of the names of outlined modules
_LIGHT = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions")
_LIGHT_PARTS = ("config", "errors", "events", "registry")  # modules of ratrain that are imported as usual
_TEXT = ast.parse("from __future__ import annotations").body
_FAMILIES = ("ratrain.patches.", "ratrain.recipe.optim.")  # one kind's options may extend another's


_made: dict[str, ModuleType] = {}  # by name, PREFIX included


class WholeFileNeededError(BaseException):
    """The outline is not enough; the whole file must be imported. Not an Exception, so that no validator catches it."""


def _refuse(*_used: Any, **_more: Any) -> NoReturn:
    raise WholeFileNeededError


_OPERATORS = {name for name in dir(operator) if name.startswith("__")} - set(dir(ModuleType("")))
_USES = (
    *_OPERATORS,
    *(f"__r{name[2:]}" for name in _OPERATORS),
    *("__getattribute__", "__setattr__", "__delattr__", "__call__", "__bool__", "__len__", "__iter__", "__hash__"),
    *("__str__", "__repr__", "__format__", "__int__", "__float__", "__instancecheck__", "__subclasscheck__"),
    *("__mro_entries__", "__enter__", "__exit__", "__divmod__", "__round__", "__reversed__", "__eq__", "__ne__"),
)
_Absent = type("_Absent", (), dict.fromkeys(_USES, _refuse))


def is_absent(value: object) -> bool:
    """Returns whether `value` is the placeholder of an absent name; every other use of it raises."""
    return type(value) is _Absent


def module_of(options: type) -> ModuleType:
    """Returns the module that defines a class, outlined or imported."""
    return _made.get(options.__module__) or sys.modules[options.__module__]


def outline_package(name: str) -> ModuleType:
    """Returns the outline of a module of the package, built once. Raises WholeFileNeededError."""
    if known := _made.get(PREFIX + name):
        return known
    try:
        spec = find_spec(name)
    except ImportError:  # of the package that holds the module
        spec = None
    if spec is None or spec.origin is None:
        raise WholeFileNeededError
    return outline_file(name, Path(spec.origin))


def outline_file(name: str, file: Path) -> ModuleType:
    """Builds the outline of `file` as module `name`. Raises WholeFileNeededError if the file does more than define."""
    module = ModuleType(PREFIX + name)
    module.__file__, module.__package__ = str(file), name.rpartition(".")[0]
    with _shown(module):
        try:
            for statement in ast.parse(file.read_bytes(), str(file)).body:
                _run(statement, module)
        except Exception as error:
            raise WholeFileNeededError from error  # the import will fail too, with the cause
        if not all(value.__pydantic_complete__ for value in vars(module).values() if _is_model(value)):
            raise WholeFileNeededError
    return module


@contextmanager
def _shown(module: ModuleType) -> Iterator[None]:
    """Registers an outline, and puts all outlines into `sys.modules` for the duration of the context.

    Pydantic looks up the names of annotations there. They are removed afterwards, because code that iterates over all
    modules, as pickle does, would use absent names.
    """
    outermost = sys.modules.keys().isdisjoint(_made)  # outlines may nest
    _made[module.__name__] = module
    sys.modules.update(_made)
    try:
        yield
    except BaseException:
        del _made[module.__name__], sys.modules[module.__name__]
        raise
    finally:
        for name in _made if outermost else ():
            del sys.modules[name]


def _is_model(value: object) -> bool:
    return issubclass(type(value), type) and issubclass(value, BaseModel)  # type: ignore[arg-type]


def _run(statement: ast.stmt, module: ModuleType) -> None:
    """Executes one statement in the module, or makes the names that it would bind absent."""
    space = vars(module)
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        _import(statement, module)
    elif (names := _bound(statement)) and any(is_absent(space.get(name)) for name in _needed(statement)):
        space.update((name, _Absent()) for name in names)
    elif names:
        _execute(statement, module)


def _execute(statement: ast.stmt, module: ModuleType) -> None:
    # annotations stay strings: those of methods may use absent names, and pydantic resolves those of fields
    tree = ast.fix_missing_locations(ast.Module([*_TEXT, statement], []))
    exec(compile(tree, str(module.__file__), "exec", 0, True), vars(module))


def _bound(statement: ast.stmt) -> list[str]:
    """Returns the names that a definition binds; none for docstrings, constants and `if TYPE_CHECKING` blocks.

    Raises WholeFileNeededError for any other statement.
    """
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
        if all(isinstance(part, ast.Name) for part in parts):
            return [part.id for part in parts if isinstance(part, ast.Name)]
    idle = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    typing = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING" and not statement.orelse
    if idle or typing:
        return []
    raise WholeFileNeededError


def _needed(node: ast.AST) -> Iterator[str]:
    """Yields the names that a statement reads at execution, without function bodies and annotations."""
    parts: Iterator[ast.AST] | list[Any] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        parts = [*getattr(node, "decorator_list", ()), *defaults]
    elif isinstance(node, ast.AnnAssign):
        parts = [node.value] if node.value else []
    for part in parts:
        yield from _needed(part)


def _import(statement: ast.Import | ast.ImportFrom, module: ModuleType) -> None:
    """Imports light modules, takes names of other kinds' modules from their outlines, and makes all others absent."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            _bind(alias.name, [alias.asname or alias.name.partition(".")[0]], ast.Import([alias]), module)
        return
    source = resolve_name("." * statement.level + (statement.module or ""), module.__package__)
    names = [alias.asname or alias.name for alias in statement.names]
    if "*" in names:
        raise WholeFileNeededError
    if source == "ratrain":  # the front door: its classes of options are light, its functions and models are not
        light = vars(importlib.import_module("ratrain.registry"))
        for name, alias in zip(names, statement.names, strict=True):
            if alias.name in _LIGHT_PARTS:
                _execute(ast.ImportFrom("ratrain", [alias], 0), module)
            else:
                vars(module)[name] = light.get(alias.name, _Absent())
        return
    _bind(source, names, statement, module)
    if source.startswith((*_FAMILIES, f"{module.__package__}.") if module.__package__ else _FAMILIES):
        there = vars(outline_package(source))
        vars(module).update((name, there[alias.name]) for name, alias in zip(names, statement.names, strict=True))


def _bind(source: str, names: list[str], statement: ast.stmt, module: ModuleType) -> None:
    root, _, rest = source.partition(".")
    if find_spec(root) is None:
        raise WholeFileNeededError
    light = rest.partition(".")[0] in _LIGHT_PARTS if root == "ratrain" else root in _LIGHT
    if light or root in sys.stdlib_module_names:
        _execute(statement, module)
    else:
        vars(module).update((name, _Absent()) for name in names)
