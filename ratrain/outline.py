"""The option classes of a source file without the rest of it: no torch is imported, no module class is made.

An outline runs a file's statements as an import would, but for imports of anything heavy and for statements that need
such an import: names that those would bind are absent. A use of an absent name raises WholeFileNeededError, upon which
the caller imports the file. So an outline is exact, or says that it cannot be had; it is made anew in each process.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pydantic import BaseModel

PREFIX = "ratrain_outline_"  # begins the name of an outlined module
_LIGHT = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions")
_LIGHT_PARTS = ("config", "errors", "events", "registry")  # of ratrain: imported as they are
_TEXT = ast.parse("from __future__ import annotations").body
_FAMILIES = ("ratrain.patches.", "ratrain.legacy.", "ratrain.recipe.optim.")  # one kind's options may extend another's


_made: dict[str, ModuleType] = {}  # by name, PREFIX included


class WholeFileNeededError(BaseException):
    """Only an import of the whole file can tell. Not an Exception: a validator that catches those must not hide it."""


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
    """Whether `value` stands for a name that the outline leaves out; nothing else may be asked of it."""
    return type(value) is _Absent


def module_of(options: type) -> ModuleType:
    """Where a class is defined, outlined or imported."""
    return _made.get(options.__module__) or sys.modules[options.__module__]


def outline_package(name: str) -> ModuleType:
    """The outline of a module of the package, made once. Raises WholeFileNeededError."""
    if known := _made.get(PREFIX + name):
        return known
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise WholeFileNeededError
    return outline_file(name, Path(spec.origin))


def outline_file(name: str, file: Path) -> ModuleType:
    """The outline of `file` as the module `name`. Raises WholeFileNeededError where it does more than define."""
    module = ModuleType(PREFIX + name)
    module.__file__, module.__package__ = str(file), name.rpartition(".")[0]
    with _shown(module):
        try:
            for statement in ast.parse(file.read_bytes(), str(file)).body:
                _run(statement, module)
        except Exception as error:
            raise WholeFileNeededError from error  # the import will fail too, and say why
        if not all(value.__pydantic_complete__ for value in vars(module).values() if _is_model(value)):
            raise WholeFileNeededError
    return module


@contextmanager
def _shown(module: ModuleType) -> Iterator[None]:
    """Keeps an outline that is made, and has all of them among the imported modules meanwhile.

    Pydantic looks the names of annotations up there. Later they would be in the way: who walks through all modules, as
    pickle does, would touch absent names.
    """
    outermost = sys.modules.keys().isdisjoint(_made)  # one may need another
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
    """Runs one statement in the module, or makes the names that it would bind absent."""
    space = vars(module)
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        _import(statement, module)
    elif (names := _bound(statement)) and any(is_absent(space.get(name)) for name in _needed(statement)):
        space.update((name, _Absent()) for name in names)
    elif names:
        _execute(statement, module)


def _execute(statement: ast.stmt, module: ModuleType) -> None:
    # annotations stay text: those of methods name modules, those of fields are looked up by pydantic
    tree = ast.fix_missing_locations(ast.Module([*_TEXT, statement], []))
    exec(compile(tree, str(module.__file__), "exec", 0, True), vars(module))


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a definition binds; none for what may be passed over. Raises WholeFileNeededError for the rest."""
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
    """The names that a statement reads when it runs: bodies of functions run later, annotations are text."""
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
    """Imports what is light, takes options of other kinds from outlines, and makes the rest absent."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            _bind(alias.name, [alias.asname or alias.name.partition(".")[0]], ast.Import([alias]), module)
        return
    source = resolve_name("." * statement.level + (statement.module or ""), module.__package__)
    names = [alias.asname or alias.name for alias in statement.names]
    if "*" in names:
        raise WholeFileNeededError
    _bind(source, names, statement, module)
    if source.startswith(_FAMILIES):
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
