"""Builds and loads guard.cpp for the torch of this Python. Imports no torch: the hooks must be there before it."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def compiler() -> str | None:
    """Returns the C++ compiler that builds the guard; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def load() -> ctypes.CDLL:
    """Loads the guard, compiled at its first use (half a minute) and kept in the temporary folder.

    Raises RuntimeError if it cannot be compiled.
    """
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    torch = Path(spec.origin).parent
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(SOURCE.read_bytes() + f"{version} {torch}".encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"ratrain-guard-{os.getuid()}-{key}.so"
    if not library.exists():
        _build(torch, library)
    return ctypes.CDLL(str(library))


def _build(torch: Path, library: Path) -> None:
    if (program := compiler()) is None:
        raise RuntimeError("no C++ compiler found: install g++, or name one in CXX")
    aside = library.with_suffix(f".{os.getpid()}")
    folders = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include", f"-L{torch}/lib"]
    command = [program, "-std=c++20", "-O1", "-fPIC", "-shared", *folders, str(SOURCE), "-o", str(aside)]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} cannot build {SOURCE.name}: {done.stderr.strip().splitlines()[-1]}")
    os.replace(aside, library)  # two processes may build it at once
