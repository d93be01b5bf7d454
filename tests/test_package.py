"""Wheels hold the whole package, whichever tree they are built from, and work apart from it.

The trees are of HEAD with the edits of tracked files (`git stash create`); files that git does not track are left out.
Nothing is fetched: the build runs setuptools as it is installed.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("kernels", "legacy", "manifests")
# as from a shell: git hands its own variables on to hooks
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
WHO = ("-c", "user.name=tests", "-c", "user.email=tests@example.invalid")


def git(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Its stdout."""
    env = {**CLEAN, **environment}
    return subprocess.run(["git", *words], cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout.strip()


def setuptools(hook: str, tree: Path, out: Path) -> subprocess.CompletedProcess:
    """A hook of setuptools run in `tree`, as pip runs it; what it makes goes into the folder `out`."""
    code = f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, out], cwd=tree, capture_output=True, text=True)


def made(hook: str, tree: Path, out: Path) -> Path:
    """The one file that the hook makes."""
    done = setuptools(hook, tree, out)
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file


def files(wheel: Path) -> dict[str, int]:
    """Checksums of what the wheel holds, by name; RECORD, which lists the same in any order, has none."""
    infos = zipfile.ZipFile(wheel).infolist()
    return {info.filename: 0 if info.filename.endswith("RECORD") else info.CRC for info in infos}


@pytest.fixture(scope="module")
def commit():
    try:
        top = git("rev-parse", "--show-toplevel")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git knows no checkout here, so that no archive and no clone can be made")
    if Path(top).resolve() != ROOT:
        pytest.skip(f"the checkout here is another one, {top}")
    return git(*WHO, "stash", "create") or git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def tree(commit, tmp_path_factory):
    """The folder of a tree: plain, zip (links as text), clone (likewise), sdist. Each is made once."""

    @cache
    def tree(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "clone":
            git("clone", "-q", "-c", "core.symlinks=false", "--no-checkout", "--shared", ROOT, folder)
            objects = Path(git("rev-parse", "--git-path", "objects"))  # the commit of edits is on no branch
            git("checkout", "-q", commit, cwd=folder, GIT_ALTERNATE_OBJECT_DIRECTORIES=str(ROOT / objects))
        elif kind == "zip":
            git("archive", "--format=zip", "-o", folder / "tree.zip", commit)
            zipfile.ZipFile(folder / "tree.zip").extractall(folder)
        elif kind == "plain":
            git("archive", "--format=tar", "-o", folder / "tree.tar", commit)
            subprocess.run(["tar", "-xf", "tree.tar"], cwd=folder, check=True)
        else:
            file = made("build_sdist", tree("plain"), folder)
            subprocess.run(["tar", "-xzf", file], cwd=folder, check=True)
            return folder / file.name.removesuffix(".tar.gz")
        return folder

    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel that is built from a tree, once."""
    return cache(lambda kind: made("build_wheel", tree(kind), tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_every_file_of_the_package(wheel, commit):
    held = {name for name in files(wheel("plain")) if name.startswith("ratrain/")}
    assert held == {*git("ls-tree", "-r", "-z", "--name-only", commit, "ratrain/").strip("\0").split("\0")}
    assert {"kernels/tuned/sm_90.json", "legacy/defconfigs/gpt2-vanilla-baseline", "manifests/unified_ra_v9.toml"} <= {
        name.removeprefix("ratrain/") for name in held
    }


@pytest.mark.parametrize("kind", ["zip", "clone", "sdist"])
def test_wheels_of_other_trees_hold_the_same(kind, tree, wheel):
    assert all((tree("plain") / name).is_symlink() for name in LINKS)
    assert not any((tree(kind) / name).is_dir() for name in LINKS)
    assert files(wheel(kind)) == files(wheel("plain"))


def test_the_sdist_holds_all_that_the_tests_need(tree, commit):
    folders = ("tests", "bench", "docs", "docker")
    files = (".dockerignore", "Makefile", "constraints.txt", "pyproject.toml", "mkdocs.yml", "README.md", "LOG.md")
    needed = (*folders, *files, "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff")
    names = git("ls-tree", "-r", "-z", "--name-only", commit, *needed).strip("\0").split("\0")
    assert "tests/conftest.py" in names
    assert not [name for name in names if not (tree("sdist") / name).is_file()]


@pytest.mark.parametrize("part", LINKS)
@pytest.mark.parametrize("hook", ["build_sdist", "build_wheel"])
def test_a_tree_that_lacks_a_part_is_refused(part, hook, tree, tmp_path):
    partial = shutil.copytree(tree("zip"), tmp_path / "partial")
    shutil.rmtree(partial / "ratrain" / part)
    (partial / "ratrain" / part).write_text(f"../{part}")
    done = setuptools(hook, partial, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"ratrain/{part} is not a folder: the package would lack it")
    assert len(done.stderr.splitlines()) == 1 and not [*(tmp_path / "out").iterdir()]


def test_a_wheel_works_apart_from_the_tree(wheel, tmp_path):
    zipfile.ZipFile(wheel("clone")).extractall(tmp_path / "site")
    (tmp_path / "here").mkdir()

    def python(*words: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path / "here", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    places = python("-c", "import ratrain, ratrain.kernels as kernels; print(ratrain.__file__, kernels.__file__)")
    assert all(Path(place).is_relative_to(tmp_path / "site") for place in places.split())
    assert {"v0", "v9", "modern"} <= {line.split()[0] for line in python("-m", "ratrain", "list").splitlines() if line}
    shown = python("-m", "ratrain", "show", "v9")
    assert shown == python("-m", "ratrain", "show", "manifests/unified_ra_v9.toml")
    assert 'id = "v9"  # manifests/unified_ra_v9.toml:2' in shown


# -- metadata: of the wheel, and of what it needs


PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [(extra, word) for extra, words in {"": PROJECT["dependencies"], **EXTRAS}.items() for word in words]
# modules whose distribution has another name, or comes with the one that is required
PROVIDED = {
    "pynvml": "nvidia-ml-py",
    "lm_eval": "lm-eval",
    "markupsafe": "jinja2",
    "pyarrow": "datasets",
    "PIL": "matplotlib",
}
PROVIDED |= {"huggingface_hub": "datasets", "httpx": "datasets"}
# FlashAttention and layers of other authors are looked for and never required
LOOKED_FOR = {"flash_attn", "flash_attn_interface", "fla"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_metadata_of_the_wheel_describe_it(wheel):
    archive = zipfile.ZipFile(wheel("plain"))
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = HeaderParser().parsestr(archive.read(name).decode())
    assert (told["Name"], told["Requires-Python"], told["License-Expression"]) == ("ratrain", ">=3.10", "MIT")
    assert told["Summary"] and told["Keywords"] and "text/markdown" in told["Description-Content-Type"]
    classifiers = told.get_all("Classifier")
    assert "Typing :: Typed" in classifiers and "ratrain/py.typed" in archive.namelist()
    assert not [word for word in classifiers if word.startswith("License ::")]  # the expression replaces it
    assert {canonical(extra) for extra in told.get_all("Provides-Extra")} == set(EXTRAS)
    readme = (ROOT / "README.md").read_text()
    first, last = re.search(r"Python 3\.(\d+) to 3\.(\d+)", readme).groups()
    stated = [f"Programming Language :: Python :: 3.{minor}" for minor in range(int(first), int(last) + 1)]
    assert [word for word in classifiers if re.search(r"3\.\d", word)] == stated


@pytest.mark.parametrize(("extra", "word"), NEEDED, ids=lambda value: value or "core")
def test_a_requirement_is_tested_and_can_be_imported(extra, word):
    needed = Requirement(word)
    if not (needed.marker is None or needed.marker.evaluate()):
        pytest.skip("not for this system")
    try:
        found = metadata.distribution(needed.name)
    except metadata.PackageNotFoundError:
        assert extra in set(EXTRAS) - {"dev"}, f"{needed.name} is missing: make"
        pytest.skip(f"{needed.name} is not installed: an extra")
    assert needed.specifier.contains(found.version, prereleases=True)
    modules = [top for top, names in metadata.packages_distributions().items() if found.metadata["Name"] in names]
    modules = [top for top in modules if not top.startswith("_")] or [needed.name]
    assert any(find_spec(top) for top in modules)


def test_every_module_that_is_imported_is_required():
    required = {canonical(Requirement(word).name) for extra, word in NEEDED if extra != "dev"}
    lacking = {}
    for file in (ROOT / "ratrain").rglob("*.py"):
        for module in named(ast.parse(file.read_text())) - sys.stdlib_module_names - LOOKED_FOR - {"ratrain"}:
            if canonical(PROVIDED.get(module, module)) not in required:
                lacking.setdefault(module, str(file.relative_to(ROOT)))
    assert not lacking


def named(tree: ast.AST) -> set[str]:
    """The top modules that are imported anywhere, also by import_module("name")."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            word = node.args[0]
            found |= {word.value} if isinstance(word, ast.Constant) else set()
    return {name.partition(".")[0] for name in found}


def test_the_install_lines_of_messages_name_extras():
    lines = [
        found
        for folder in ("ratrain", "docs")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".md", ".jinja")
        for found in re.findall(r"pip install '?ratrain\[([\w,]+)\]", file.read_text())
    ]
    assert {extra for found in lines for extra in found.split(",")} == set(EXTRAS) - {"dev"}
