"""A cache of reproducible results under $XDG_CACHE_HOME/ratrain. It need not be writable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ratrain.atomic import write_file
from ratrain.errors import CannotCreateError, DiskError
from ratrain.lock import lock


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/ratrain, by default ~/.cache/ratrain; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification: a relative path is to be ignored
    return (Path(root) if os.path.isabs(root) else Path(os.path.expanduser("~/.cache"))) / "ratrain"


def remembered(
    kind: str, key: str, compute: Callable[[], dict], *, sound: Callable[[dict], bool] = lambda value: True
) -> dict:
    """Returns the JSON object cached for `key`, else the result of `compute`, cached if the cache is writable.

    A cached object that is not `sound` counts as damaged and is computed again.
    """
    file = cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(file.read_bytes())
        if known["key"] == key and sound(known["value"]):
            return known["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # absent or damaged: compute again
    value = compute()
    keep(file, [json.dumps({"key": key, "value": value}).encode()])
    return value


def keep(file: Path, parts: list[bytes | memoryview]) -> bool:
    """Writes `file` into the cache; returns False if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, parts)
    except (OSError, CannotCreateError, DiskError):
        return False
    return True


@contextlib.contextmanager
def alone(kind: str) -> Iterator[None]:
    """Waits while another process is in a block of the same kind; does not wait if the cache cannot be written."""
    folder = cache_folder() / kind
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            folder.mkdir(parents=True, exist_ok=True)
            opened.callback(os.close, lock(folder / "lock", wait=None))
        yield
