"""The folder of a profile: its files, and the check that it may be overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ratrain.atomic import ASIDE, write_file
from ratrain.config.schema import Manifest
from ratrain.errors import CannotCreateError, UsageError

KIND = "ratrain profile"  # marks profile.json; a folder with it may be overwritten
TRACE, RECORD, TABLE = "trace.json.gz", "profile.json", "profile.txt"
MEMORY, SNAPSHOT = "memory.json", "memory.pickle"
_FILES = {TRACE, RECORD, TABLE, MEMORY, SNAPSHOT}


def default_folder(manifest: Manifest) -> Path:
    """Returns the default folder in the current directory, named by the variant's id and scale."""
    return Path(f"profile-{manifest.id}-{manifest.scale}")


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Creates the folder and checks that it is writable; without a finished profile, the empty folder is removed.

    Raises CannotCreateError if the folder cannot be created or holds other files, UsageError if it is inside runs/.
    """
    _refuse(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).touch()  # fails now rather than after a minute of compiling
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from error
    (folder / SNAPSHOT).unlink(missing_ok=True)
    try:
        yield folder
    finally:
        if not (folder / RECORD).stat().st_size:
            for name in (RECORD, SNAPSHOT):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def write(folder: Path, record: Mapping[str, Any], *, table: str, memory: Mapping[str, Any], trace: Any) -> None:
    """Writes all files into a claimed folder. `trace` is the finished profiler. Raises DiskError."""
    for name in _FILES - {SNAPSHOT, RECORD}:
        (folder / name).unlink(missing_ok=True)
    write_file(folder / RECORD, [json.dumps(record, indent=1).encode()])
    write_file(folder / MEMORY, [json.dumps(memory).encode()])
    write_file(folder / TABLE, [f"{table}\n".encode()])
    trace.export_chrome_trace(str(folder / TRACE))


def _refuse(folder: Path) -> None:
    if folder.resolve().is_relative_to(Path("runs").resolve()):
        raise UsageError(f"--out {folder}: this is inside runs/, the folder of runs; choose another --out")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CannotCreateError(f"{folder}: is no folder; choose another --out")
    try:
        names = {file.name for file in folder.iterdir() if not file.name.endswith(ASIDE)}
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be read: {error.strerror}; choose another --out") from error
    if names and not (names <= _FILES and _is_profile(folder)):
        strange = ", ".join(sorted(names - _FILES)[:3]) or RECORD
        raise CannotCreateError(
            f"{folder}: holds something else than an earlier profile ({strange}); choose another --out"
        )


def _is_profile(folder: Path) -> bool:
    try:
        text = (folder / RECORD).read_bytes()
        record = json.loads(text or f'{{"kind": "{KIND}"}}')  # empty: a profile that was killed before it was written
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == KIND
