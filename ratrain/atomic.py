"""Atomic file writes: to a temporary file, synced, then renamed.

All system calls are plain functions of `os`, so that a full disk raises its errno, and a test can end the process at
any of the calls.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ratrain.errors import CannotCreateError, DiskError

ASIDE = ".part"  # suffix of unfinished files


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes `parts` to `path` atomically: an old file is replaced only once all parts are on disk.

    Raises CannotCreateError, DiskError.
    """
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
    """Writes `parts` to the file `path` and syncs the content, but not the folder entry. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for part in parts:
            write_all(descriptor, part)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Writes all of `data`; a single `os.write` may write less. Raises OSError."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Syncs the entries of `folder`, so that they survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Deletes unfinished files of killed writers below `folder`, which the caller must hold.

    Unfinished notes are left alone, since notes are written without holding the folder.
    """
    for left in folder.rglob(f".*{ASIDE}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif not left.name.startswith(".notes."):
            left.unlink(missing_ok=True)
