"""Wheels hold the whole package, whichever tree they are built from, and work apart from it.

The trees are of HEAD with the edits of tracked files (`git stash create`); files that git does not track are left out.
Nothing is fetched: the build runs setuptools as it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

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
    needed = ("tests", "bench", "docs", "Makefile", "constraints.txt", "pyproject.toml", "mkdocs.yml", "CITATION.cff")
    needed = (*needed, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md")
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
