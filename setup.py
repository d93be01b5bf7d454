"""Refuses to build a package that lacks a part of itself; all else about the build is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

PACKAGE = Path(__file__).parent / "ratrain"

for part in ("kernels", "legacy", "manifests"):
    if not (PACKAGE / part).is_dir():
        raise SystemExit(f"ratrain/{part} is not a folder: the package would lack it; build from a whole tree")

setup()
