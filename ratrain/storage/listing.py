"""Lists, follows and deletes the runs in a folder from their files alone. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from ratrain.errors import DataError, MissingError, UsageError
from ratrain.event_log import records
from ratrain.events import Evaluated, Event, RunEnded, RunStarted, Window
from ratrain.storage.folder import RunFolder, run_paths
from ratrain.storage.notes import Notes, read_notes

E = TypeVar("E", bound=Event)

_LAST_WINDOWS = 8  # the speed is the median over these windows
_LOOK = 1 << 16  # bytes at the end of events.jsonl, which usually contain an evaluation
_POLL = 0.3  # seconds between reads of a followed log


# -- one run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The status of a run. Unknown values are None; a loss may be NaN."""

    name: str  # below the folder of runs
    path: Path
    status: str
    step: int | None
    total_steps: int | None  # None if the budget is in seconds
    spent: float | None  # fraction of the budget
    loss: float | None  # of the last evaluation
    tokens_per_second: float | None
    moved: float  # time of the last change, in seconds since the epoch
    tags: tuple[str, ...]
    note: str
    windows: str = ""  # digest of the validation windows of the loss

    def record(self) -> dict[str, Any]:
        """Returns the status as JSON values; non-finite numbers become null."""
        moved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.moved))
        known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return {**known, "path": str(self.path), "moved": moved}


def summarized(path: Path, root: Path) -> Run:
    """Reads the status of the run in `path` from its state.json, events.jsonl, notes.json and lock."""
    folder = RunFolder(path)
    state, events = folder.read_state(), _recent(path / "events.jsonl")
    started = _last(events, RunStarted)
    window, evaluated = _last(events, Window), _last(events, Evaluated)
    steps = [event.step for event in events if not isinstance(event, RunStarted)]
    status, notes = run_status(folder), _notes_if_readable(path)
    return Run(
        name=str(path.relative_to(root)),
        path=path,
        status=status,
        step=steps[-1] if steps else _whole(_number(state.get("step"))),
        total_steps=started.total_steps if started else None,
        spent=1.0 if status == "done" else window.spent if window else _number(state.get("spent")),
        loss=evaluated.loss if evaluated else _number(state.get("loss")),
        tokens_per_second=_median([event.tokens_per_second for event in events if isinstance(event, Window)]),
        moved=max(_mtime(path / name) for name in ("events.jsonl", "state.json", "log.txt", "resolved.toml")),
        tags=notes.tags,
        note=notes.note,
        windows=evaluated.windows if evaluated else "",
    )


def _notes_if_readable(path: Path) -> Notes:
    try:
        return read_notes(path)
    except DataError:  # one unreadable run must not break the list
        return Notes(note="(notes.json cannot be read)")


def run_status(folder: RunFolder) -> str:
    """Returns the status: `running` if the lock is held, `died` if state.json has `running` and the lock is free.

    Otherwise the status of state.json, or `unknown`.
    """
    if folder.is_held():
        return "running"
    status = str(folder.read_state().get("status", "unknown"))
    return "died" if status == "running" else status


def _last(events: Sequence[Event], kind: type[E]) -> E | None:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def _recent(file: Path) -> list[RunStarted | Window | Evaluated | RunEnded]:
    """Returns the newest RunStarted, the last windows, and the last evaluation and RunEnded of `file`."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_LOOK)
            end, size = stream.seek(0, os.SEEK_END), _LOOK
            # the file of a long run is large: read it backwards until an evaluation is found
            while True:
                stream.seek(max(0, end - size))
                tail = stream.read()
                if b'"event": "Evaluated"' in tail or size >= end:
                    break
                size *= 8
    except OSError:
        return []
    told: list[Window | Evaluated | RunEnded] = [*_newest(tail, Window, _LAST_WINDOWS)]
    told += [*_newest(tail, Evaluated, 1), *_newest(tail, RunEnded, 1)]
    told.sort(key=lambda event: event.step)
    started = [*_newest(head, RunStarted, 1), *_newest(tail, RunStarted, 1)]
    return [*started, *told]


def _newest(lines: bytes, kind: type[E], count: int) -> Iterator[E]:
    """Returns the last `count` events of a kind, oldest first; truncated or damaged lines are skipped."""
    mark = f'"event": "{kind.__name__}"'.encode()
    found: list[E] = []
    for line in reversed(lines.split(b"\n")):
        if len(found) == count:
            break
        if mark in line:
            for record in records(line.decode(errors="replace")):
                with contextlib.suppress(ValueError):
                    event = Event.from_record(record)
                    if isinstance(event, kind):
                        found.append(event)
    return reversed(found)


def _number(value: Any) -> float | None:
    """Parses a number of state.json, in which non-finite numbers may be strings ("nan", "inf", "-inf")."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and math.isfinite(value) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else None


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


# -- the list ---------------------------------------------------------------------------------------------------

_ORDERS: dict[str, Callable[[Run], Any]] = {
    "when": lambda run: -run.moved,
    "val": lambda run: math.inf if run.loss is None or math.isnan(run.loss) else run.loss,
    "step": lambda run: math.inf if run.step is None else -run.step,
    "name": lambda run: run.name,
}
ORDERS = tuple(_ORDERS)


def list_runs(root: Path, glob: str | None = None, *, sort: str = "when") -> list[Run]:
    """Returns the runs below `root` whose name, folder or id matches `glob`, sorted by `sort` (a key of ORDERS).

    "when" is newest first, "val" lowest loss first, "step" most steps first, "name" alphabetical.
    """
    runs = []
    for path in run_paths(root):
        name = str(path.relative_to(root))
        if glob is None or any(fnmatchcase(name, pattern) for pattern in (glob, f"{glob}/*", f"{glob}-*")):
            runs.append(summarized(path, root))
    return sorted(runs, key=lambda run: (_ORDERS[sort](run), run.name))


def table(runs: Sequence[Run], *, width: int | None) -> str:
    """Formats the runs as lines of at most `width` columns (None: no limit).

    If they are too wide, the note is shortened at a word first, then columns are dropped.
    """
    head = ("run", "status", "step", "val loss", "tok/s", "moved", "tags", "note")
    rows = [head, *(_cells(run, time.time()) for run in runs)]
    widths = {title: max(len(row[at]) for row in rows) for at, title in enumerate(head)}
    shown = [
        title for title in head if title not in ("tags", "note") or any(row[head.index(title)] for row in rows[1:])
    ]
    for title in ("note", "tags", "tok/s", "moved", "step", "status", "val loss"):
        over = sum(widths[t] + 2 for t in shown) - 2 - width if width is not None else 0
        if over <= 0:
            break
        if title == "note" and title in shown and widths["note"] - over >= 8:  # room for a word or two
            widths["note"] -= over
        elif title in shown:
            shown.remove(title)
    return "\n".join(_line(row, head, shown, widths) for row in rows)


def _cells(run: Run, now: float) -> tuple[str, ...]:
    if run.total_steps is not None and run.step is not None:
        step = f"{run.step}/{run.total_steps}"
    else:
        step = "-" if run.spent is None else f"{100 * run.spent:.0f} %"
    return (
        run.name,
        run.status,
        step,
        "-" if run.loss is None else f"{run.loss:.4f}",
        "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        _ago(now - run.moved),
        _plain(",".join(run.tags)),
        _plain(run.note),
    )


def _line(row: Sequence[str], head: Sequence[str], shown: Sequence[str], widths: dict[str, int]) -> str:
    cells = []
    for title, cell in zip(head, row, strict=True):
        if title in shown:
            cell = textwrap.shorten(cell, widths[title], placeholder=" …") if title == "note" else cell
            right = title in ("step", "val loss", "tok/s", "moved")
            cells.append(cell.rjust(widths[title]) if right else cell.ljust(widths[title]))
    return "  ".join(cells).rstrip()


def _plain(text: str) -> str:
    """Returns `text` on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


# -- deleting ---------------------------------------------------------------------------------------------------

_BUSY = "stop it first"


def check_removable(run: Path) -> None:
    """Raises UsageError for a link or a folder without a run, CannotCreateError for a run in training."""
    if run.is_symlink():
        raise UsageError(f"{run}: is a link; name the folder that it leads to, {run.resolve()}")
    if not (run / "run.lock").is_file():
        raise UsageError(f"{run}: has no run.lock, so nothing was trained here; delete it by hand if it is in the way")
    folder = RunFolder(run)
    if folder.is_held():
        raise folder.refusal(_BUSY)


def remove(run: Path) -> None:
    """Deletes the folder of a run, by a rename first, so that it is complete or gone. Raises as `check_removable`."""
    check_removable(run)
    run = run.resolve()  # `.` has no name
    with RunFolder(run).open(advice=_BUSY):
        doomed = run.with_name(f".{run.name}.removed")
        if doomed.exists():  # an earlier removal was interrupted
            shutil.rmtree(doomed)
        run.rename(doomed)
        shutil.rmtree(doomed)
    if not any(run.parent.iterdir()):
        run.parent.rmdir()


def size(run: Path) -> int:
    """Returns the bytes in the folder of a run."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())


# -- following --------------------------------------------------------------------------------------------------


def tail(run: Path, count: int, *, follow: bool = False) -> Iterator[str]:
    """Yields the last `count` lines of the run's log; with `follow` also new lines until training ends.

    Raises MissingError if the log cannot be read. A line in the process of being written may arrive in pieces.
    """
    # the log, not events.jsonl: it is append-only, and holds the lines as they were printed
    log = run / "log.txt"
    try:
        file = log.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MissingError(f"{log}: cannot be read: {error.strerror}") from error
    with file:
        yield from deque(file, maxlen=count)
        while follow:
            # checked before the rest is read, so that lines written before the lock's release are not missed
            live = RunFolder(run).is_held() and os.path.samestat(os.fstat(file.fileno()), log.stat())
            yield from file
            if not live:
                return
            time.sleep(_POLL)


def failure(run: Path) -> str | None:
    """Returns why the run ended if its log does not state it: it died, or failed outside the engine. Else None."""
    folder = RunFolder(run)
    status = run_status(folder)
    if status == "died":
        return f"{run}: died without an error message; the same command resumes from its last checkpoint"
    return f"{run}: failed: {folder.read_state().get('reason', 'for no known reason')}" if status == "failed" else None
