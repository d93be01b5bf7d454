"""Files that are complete or absent: written aside, synced, renamed.

Everything goes through plain functions of `os`: a full disk then has its errno, and a test can end the process at
any one of the calls.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ratrain.errors import CannotCreateError, DiskError

ASIDE = ".part"  # ends the name of a file that is not finished


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put `parts` at `path`, replacing what is there only when all are on disk. Raises CannotCreateError, DiskError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        try:
            write_synced(aside, parts)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise CannotCreateError(f"{path}: cannot be created: {error.strerror}") from error
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from error


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` to the file `path`; they are on disk when this returns, its name may not be. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            write_all(descriptor, part)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """All of `data`: a call may take less than it is given. Raises OSError."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left below `folder`, which the caller must hold. Notes are anybody's to write."""
    for left in folder.rglob(f".*{ASIDE}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif not left.name.startswith(".notes."):
            left.unlink(missing_ok=True)
