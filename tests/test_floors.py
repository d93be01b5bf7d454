"""The picture of design section 3: an import points down or sideways, never up, and no modules import each other."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("bench",),
    ("legacy",),
    ("cli", "__main__"),
    ("api",),
    ("report",),
    ("ablation", "audit", "export"),
    ("profile", "contracts", "tasks"),
    ("run",),
    ("engine",),
    ("storage",),
    ("recipe",),
    ("patches",),
    ("machine",),
    ("compression", "model"),
    ("data",),
    ("sinks", "statistics"),
    ("registry", "outline"),
    ("config", "plugins"),
    ("atomic", "checksum", "lock", "waiting"),
    ("event_log",),
    ("events", "errors", "strict_json"),
    ("kernels",),
    ("__init__",),
)
LARGER = {"ratrain/patches": 20}  # folders that have yet to be split
HEIGHT = {part: -depth for depth, parts in enumerate(FLOORS) for part in parts}
FILES = [file for folder in ("ratrain", "bench") for file in sorted((ROOT / folder).rglob("*.py"))]


def part_of(file: Path) -> str:
    """The folder or module of the package that `file` belongs to."""
    inside = file.relative_to(ROOT)
    top = inside.parts[1] if inside.parts[0] == "ratrain" else inside.parts[0]
    return top.removesuffix(".py")


def modules(file: Path) -> Iterator[str]:
    """The modules that a file names in imports, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            yield from [f"ratrain.{a.name}" for a in node.names] if module == "ratrain" else [module]


def imported(file: Path) -> Iterator[str]:
    """The parts of ratrain that a file names in imports; its own are left out."""
    for name in modules(file):
        first, _, rest = name.partition(".")
        if first == "ratrain":
            part = rest.partition(".")[0]
            yield part if part in HEIGHT else "__init__"


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_an_import_never_points_up(file):
    above = [part for part in imported(file) if HEIGHT[part] > HEIGHT[part_of(file)]]
    assert not above, f"{name_of(file)} imports {', '.join(above)} from a floor above it"


def test_every_part_of_the_package_has_a_floor():
    assert {part_of(file) for file in FILES} <= set(HEIGHT)


def test_the_kernels_need_nothing_of_ratrain():
    users = [name_of(file) for file in FILES if part_of(file) == "kernels" and {*imported(file)} - {"kernels"}]
    assert not users


def test_legacy_is_found_through_entry_points_and_never_imported_by_name():
    others = [file for file in FILES if part_of(file) != "legacy"]
    assert not [name_of(file) for file in others if any(name.startswith("ratrain.legacy") for name in modules(file))]
    naming = {name_of(file) for file in others if "ratrain.legacy" in file.read_text()}
    assert naming <= {"ratrain/plugins.py"}


def test_relative_imports_stay_inside_their_folder():
    climbing = [
        name_of(file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 1
    ]
    assert not climbing


def imported_modules(file: Path, names: dict[str, Path]) -> set[str]:
    """The modules of the package that `file` imports anywhere, also for type checkers alone."""
    own = dotted(file)
    folder = own if file.name == "__init__.py" else own.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (folder if node.level else "", node.module)))
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in names else base for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & names.keys()) - {own}


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_modules_import_each_other_at_run_time_or_in_types():
    names = {dotted(file): file for file in FILES}
    graph = {name: imported_modules(file, names) for name, file in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=name_of)
def test_a_folder_holds_at_most_fifteen_modules(folder):
    modules = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
    limit = LARGER.get(name_of(folder), 15)
    assert len(modules) <= limit, f"{name_of(folder)}: {len(modules)} modules"
