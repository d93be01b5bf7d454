"""The folder of a run: who holds it, what state it is in, what was asked for."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from ratrain.atomic import write_file
from ratrain.errors import CannotCreateError, MissingError, UsageError


class RunFolder:
    """`manifest.toml resolved.toml state.json events.jsonl env.json log.txt checkpoints/ samples/ run.lock`.

    One process holds it at a time; the lock dies with the process.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None

    def open(self) -> RunFolder:
        """Creates the folder and takes its lock. Raises CannotCreateError: not writable, or held by another."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotCreateError(
                f"{self.path}: cannot be created: {error.strerror}; choose another --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip() or "another process"
            self.close()
            raise CannotCreateError(
                f"{self.path}: {holder} is training here; wait for it, or change the seed"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return self

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # gives the lock back
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def write(self, name: str, content: str | bytes) -> None:
        """Puts `content` into the file `name`, whole or not at all."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path / name, [content.encode() if isinstance(content, str) else content])

    def read_state(self) -> dict[str, Any]:
        """What state.json says; empty where there is none or it cannot be read."""
        try:
            state = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, **state: Any) -> None:
        self.write(
            "state.json", json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **state}, indent=1) + "\n"
        )

    def move_aside(self) -> Path | None:
        """Renames a folder that is there to the first free `<name>.old-N`; returns where it went."""
        if not self.path.exists():
            return None
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self.path.rename(old)
        except OSError as error:
            raise CannotCreateError(f"{self.path}: cannot be moved aside: {error.strerror}") from error
        return old


def find_run(name: str, root: Path) -> Path:
    """The folder of a run given by path, or by a prefix of its name under `root`; `@last` is the newest.

    Raises MissingError when there is none, UsageError when several fit.
    """
    if (Path(name) / "resolved.toml").is_file():
        return Path(name)
    runs = sorted(file.parent for file in root.glob("*/s*/resolved.toml") if ".old-" not in file.parent.name)
    if name == "@last" and runs:
        return max(runs, key=lambda run: (run / "state.json").stat().st_mtime if (run / "state.json").exists() else 0)
    fitting = [run for run in runs if str(run.relative_to(root)).startswith(name)]
    whole = [run for run in fitting if name in (str(run.relative_to(root)), run.parent.name)]
    fitting = whole or [run for run in fitting if run.parent.name.startswith(f"{name}-")] or fitting
    if not fitting:
        known = ", ".join(sorted({str(run.relative_to(root)) for run in runs})) or "none"
        raise MissingError(f"{name}: no such run; runs in {root}: {known}")
    if len(fitting) > 1:
        raise UsageError(f"{name}: fits {len(fitting)} runs: {', '.join(str(r.relative_to(root)) for r in fitting)}")
    return fitting[0]
