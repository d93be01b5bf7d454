"""Advisory locks of files and folders, which the operating system releases when the process ends.

Not the library filelock: a shared lock of a file that may only be read shows whether someone else's run is in training.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_POLL = 0.05  # seconds between two attempts


def lock(path: Path, *, shared: bool = False, wait: float | None = 0.0) -> int:
    """Locks a folder or a file and returns its descriptor; closing the descriptor releases the lock.

    A missing file is created, unless the lock is `shared`, which needs no permission to write. Waits up to `wait`
    seconds, or without limit for None. Raises BlockingIOError if another process still holds the lock, and OSError if
    `path` cannot be opened or its file system has no locks.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if wait is not None else 0)
    until = time.monotonic() + (wait or 0.0)
    flags = os.O_RDONLY if shared or path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, operation)
                return descriptor
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_POLL)
    except BaseException:
        os.close(descriptor)
        raise


def is_locked(path: Path) -> bool:
    """Returns whether another process holds an exclusive lock of a file; False if the file cannot be read."""
    try:
        os.close(lock(path, shared=True))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
