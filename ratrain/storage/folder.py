"""The folder of a run: who holds it, what state it is in, what was asked for."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratrain.atomic import remove_leftovers, write_file
from ratrain.errors import CannotCreateError, GaveUpError, MissingError, UsageError

_ATTEMPTS = 3  # that may end without a new checkpoint
_NAMED = 12  # runs in a message
_LOOK = 0.05  # seconds: far longer than `is_held` has the lock


class RunFolder:
    """`manifest.toml resolved.toml state.json events.jsonl summary.json env.json log.txt notes.json run.lock` and
    `checkpoints/ samples/`.

    One process holds it at a time; the lock dies with the process.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None
        self._attempt: dict[str, int] = {}  # how often in a row the run was begun at which checkpoint

    def open(self, *, advice: str = "wait for it, or change the seed") -> RunFolder:
        """Creates the folder and takes its lock. Raises CannotCreateError: not writable, or held by another."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotCreateError(
                f"{self.path}: cannot be created: {error.strerror}; choose another --out"
            ) from error
        if not (_taken(self._lock, fcntl.LOCK_EX) or _taken(self._lock, fcntl.LOCK_EX, wait=_LOOK)):
            self.close()
            raise self.refusal(advice)
        remove_leftovers(self.path)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return self

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # gives the lock back
            self._lock = None

    def is_held(self) -> bool:
        """Whether a process trains here. A look takes the lock for a moment, beside other looks."""
        try:
            lock = os.open(self.path / "run.lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _taken(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def refusal(self, advice: str) -> CannotCreateError:
        """The error that names the holder."""
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
        """Puts `content` into the file `name`, whole or not at all."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path / name, [content.encode() if isinstance(content, str) else content])

    def read_state(self) -> dict[str, Any]:
        """What state.json says; empty where there is none or it cannot be read."""
        try:
            state = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, **state: Any) -> None:
        about = {"pid": os.getpid(), "host": socket.gethostname(), **self._attempt}
        self.write("state.json", json.dumps({**about, **state}, indent=1) + "\n")

    def check_attempts(self) -> None:
        """Raises GaveUpError where the run died or failed again and again without a new checkpoint.

        A scheduler that restarts what fails then ends; a person who asks again is heard.
        """
        if self.is_held():
            return
        self.count_attempt()
        count, state = self._attempt["attempt"] - 1, self.read_state()
        if count < _ATTEMPTS:
            return
        self._attempt = {}
        self.write_state(**{k: v for k, v in state.items() if k != "attempt"})
        reason = state.get("reason", "without a word")
        raise GaveUpError(
            f"{self.path}: ended {count} times in a row with no checkpoint after step {state.get('from_step')}: "
            f"{reason}; log.txt tells more, and the same command tries once more"
        )

    def count_attempt(self) -> None:
        """Notes that the run is begun once more, for what `write_state` writes from now on."""
        state, newest = self.read_state(), [int(path.name[5:]) for path in self.checkpoints.glob("step-*[0-9]")]
        at = max(newest, default=0)
        again = state.get("status") in ("running", "failed") and state.get("from_step") == at
        self._attempt = {"attempt": int(state.get("attempt", 0)) + 1 if again else 1, "from_step": at}

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


def _taken(lock: int, kind: int, *, wait: float = 0.0) -> bool:
    """Whether the lock of an open file could be had, after `wait` seconds."""
    time.sleep(wait)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def listed(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, not verified."""
    found = [p for p in checkpoints.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """By its name."""
    return int(checkpoint.name[5:])


def run_paths(root: Path) -> list[Path]:
    """The folders of runs below `root`, by name; those that were moved aside are left out."""
    return sorted(file.parent for file in root.glob("*/s*/resolved.toml") if ".old-" not in file.parent.name)


def find_run(name: str, root: Path) -> Path:
    """The folder of a run given by path, or by a prefix of its name under `root`; `@last` is the newest.

    Raises MissingError when there is none, UsageError when several fit.
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
    """Names of the first few."""
    names = [str(run.relative_to(root)) for run in runs]
    more = f" and {len(names) - _NAMED} more; `ratrain runs` lists them" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}" or "none"
