"""The folder of a run: its lock, its state, and its manifest."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratrain.atomic import remove_leftovers, write_file
from ratrain.errors import CannotCreateError, GaveUpError, MissingError, UsageError
from ratrain.lock import is_locked, lock

_ATTEMPTS = 3  # attempts in a row that may end without a new checkpoint
_NAMED = 12  # runs named in a message
_LOOK = 0.05  # seconds to wait for the lock: far longer than `is_held` holds it


class RunFolder:
    """`manifest.toml resolved.toml state.json events.jsonl tasks.jsonl summary.json env.json log.txt notes.json
    run.lock` and `checkpoints/ samples/`.

    One process holds the folder at a time; the lock is released when the process ends.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None
        self._attempt: dict[str, int] = {}  # number of starts in a row from the same checkpoint, and its step

    def open(self, *, advice: str = "wait for it, or change the seed") -> RunFolder:
        """Creates and locks the folder. Raises CannotCreateError if it is not writable or another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path / "run.lock", wait=_LOOK)
        except BlockingIOError:
            raise self.refusal(advice) from None
        except OSError as error:
            raise CannotCreateError(
                f"{self.path}: cannot be created: {error.strerror}; choose another --out"
            ) from error
        remove_leftovers(self.path)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return self

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # releases the lock
            self._lock = None

    def is_held(self) -> bool:
        """Returns whether a process is training here, by taking a shared lock for a moment."""
        return is_locked(self.path / "run.lock")

    def refusal(self, advice: str) -> CannotCreateError:
        """Returns the error that names the process holding the folder."""
        try:
            holder = (self.path / "run.lock").read_bytes()[:200].decode(errors="replace").strip()
        except OSError:
            holder = ""
        return CannotCreateError(f"{self.path}: {holder or 'another process'} is training here; {advice}")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def write(self, name: str, content: str | bytes) -> None:
        """Writes `content` to the file `name` atomically."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path / name, [content.encode() if isinstance(content, str) else content])

    def read_state(self) -> dict[str, Any]:
        """Returns the content of state.json; empty if it is missing or cannot be read."""
        try:
            state = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, **state: Any) -> None:
        about = {"pid": os.getpid(), "host": socket.gethostname(), **self._attempt}
        self.write("state.json", json.dumps({**about, **state}, indent=1) + "\n")

    def check_attempts(self) -> None:
        """Raises GaveUpError if the run died or failed several times in a row without a new checkpoint.

        This stops a scheduler that restarts failed runs. The count is then reset, so that the next start is allowed.
        """
        if self.is_held():
            return
        self.count_attempt()
        count, state = self._attempt["attempt"] - 1, self.read_state()
        if count < _ATTEMPTS:
            return
        self._attempt = {}
        self.write_state(**{k: v for k, v in state.items() if k != "attempt"})
        reason = state.get("reason", "without an error message")
        raise GaveUpError(
            f"{self.path}: ended {count} times in a row with no checkpoint after step {state.get('from_step')}: "
            f"{reason}; log.txt tells more, and the same command tries once more"
        )

    def count_attempt(self) -> None:
        """Counts one more start of the run; later calls of `write_state` record it."""
        state, newest = self.read_state(), [int(path.name[5:]) for path in self.checkpoints.glob("step-*[0-9]")]
        at = max(newest, default=0)
        again = state.get("status") in ("running", "failed") and state.get("from_step") == at
        self._attempt = {"attempt": int(state.get("attempt", 0)) + 1 if again else 1, "from_step": at}

    def move_aside(self) -> Path | None:
        """Renames the folder to the first free `<name>.old-N`; returns the new path, or None if there is no folder.

        Raises CannotCreateError if the rename fails.
        """
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


def listed(checkpoints: Path) -> list[Path]:
    """Returns the checkpoints in a folder, newest first, unverified."""
    found = [p for p in checkpoints.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Returns the step in the name of a checkpoint folder."""
    return int(checkpoint.name[5:])


def run_paths(root: Path) -> list[Path]:
    """Returns the run folders below `root`, sorted by name, without runs that were moved aside."""
    return sorted(file.parent for file in root.glob("*/s*/resolved.toml") if ".old-" not in file.parent.name)


def find_run(name: str, root: Path) -> Path:
    """Returns the folder of a run given by path, or by a prefix of its name under `root`; `@last` is the newest.

    Raises MissingError if no run matches, UsageError if several do or if the name is empty.
    """
    if not name:  # an unset variable in a script, and a prefix of every name
        raise UsageError("expected a run, got an empty word; @last is the newest")
    if (Path(name) / "resolved.toml").is_file():
        return Path(name)
    runs = run_paths(root)
    if name == "@last" and runs:
        return max(runs, key=lambda run: (run / "state.json").stat().st_mtime if (run / "state.json").exists() else 0)
    fitting = [run for run in runs if str(run.relative_to(root)).startswith(name)]
    whole = [run for run in fitting if name in (str(run.relative_to(root)), run.parent.name)]
    fitting = whole or [run for run in fitting if run.parent.name.startswith(f"{name}-")] or fitting
    if not fitting:
        raise MissingError(f"{name}: no such run; runs in {root}: {_some(runs, root)}")
    if len(fitting) > 1:
        raise UsageError(f"{name}: fits {len(fitting)} runs: {_some(fitting, root)}")
    return fitting[0]


def _some(runs: Sequence[Path], root: Path) -> str:
    """Formats the names of the first few runs."""
    names = [str(run.relative_to(root)) for run in runs]
    more = f" and {len(names) - _NAMED} more; `ratrain runs` lists them" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}" or "none"
