"""Files that are complete or absent: written aside, synced, renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ratrain.errors import CannotCreateError, DiskError

ASIDE = ".part"  # ends the name of a file that is not finished


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put `parts` at `path`, replacing what is there only when all are on disk. Raises CannotCreateError, DiskError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        try:
            with aside.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise CannotCreateError(f"{path}: cannot be created: {error.strerror}") from error
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
