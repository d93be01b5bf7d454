"""Metrics files of the reference: a run's training_metrics.json or metrics.json, all_results.json, a matrix's folder.

Two trainers wrote them. train_ra_mla.py (all ablation steps) has `eval_iteration`, `train_loss`, `val_loss` beside its
timings; train.py has `val_losses`, `iterations` and a summary. all_results.json is a list of either, with the matrix's
facts of each test.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ratrain.errors import DataError

_OWN = ("training_metrics.json", "metrics.json")
_ALL = "all_results.json"
_STEPS, _VANILLA = "train_ra_mla.py", "train.py"
_KEYS = {_STEPS: ("iteration", "forward_time_ms"), _VANILLA: ("iterations", "val_losses")}
_KNOWN = f"expected one of {', '.join((*_OWN, _ALL))} of the reference, or a folder of them"


@dataclass(frozen=True)
class OldRun:
    """A run of the reference, from one file or entry; losses are in nats per token."""

    name: str
    trainer: str  # the script that wrote it; empty for a run that failed
    evaluated: tuple[tuple[float, float], ...] = ()  # iteration, validation loss
    iterations: int = 0
    milliseconds: float | None = None  # of an iteration, the median
    seconds: float | None = None  # of the whole test
    sparsity: float = 0.0  # as reached, else as asked for
    facts: Mapping[str, Any] = field(default_factory=dict)  # the matrix's facts of the test
    failed: str = ""

    @property
    def step(self) -> str | None:
        """The step of an ablation, from the test's name."""
        found = re.search(r"_ramla_step([A-Z]?\d+)$", self.name)
        return found[1] if found else None


def is_metrics(path: Path) -> bool:
    """Whether `path` is a JSON file, or a folder with metrics files."""
    return path.suffix == ".json" and path.is_file() if not path.is_dir() else bool(_parts(path))


def read_metrics(path: Path) -> list[OldRun]:
    """Reads every run of the file or folder. Raises DataError."""
    if not path.is_dir():
        return _entries(path)
    # `make summary` and `make continue` emptied the list of all results: files in the tests' own folders come first
    listed = {run.name: run for run in _entries(path / _ALL)} if (path / _ALL).is_file() else {}
    found = dict(listed)
    for file in _parts(path):
        if file.name != _ALL:
            name = file.parent.name if file.parent != path else path.name
            found[name] = _run(name, _read(file), file, listed[name].facts if name in listed else {})
    for file in sorted(path.glob("*/error.txt")):
        name = file.parent.name
        if name not in found:
            found[name] = OldRun(name, "", failed=_first_line(file))
    if not found:
        raise DataError(f"{path}: holds no run; {_KNOWN}")
    return list(found.values())


def _parts(folder: Path) -> list[Path]:
    """Lists the metrics files in a matrix's folder and in the folders of its tests."""
    if (folder / "events.jsonl").exists():  # a run or a study of ours
        return []
    names = [*_OWN, _ALL]
    return sorted(file for name in names for file in (folder / name, *folder.glob(f"*/{name}")) if file.is_file())


def _entries(file: Path) -> list[OldRun]:
    data = _read(file)
    if isinstance(data, Mapping):
        name = file.parent.resolve().name if file.name in _OWN else file.stem
        return [_run(str(data.get("test_id", name)), data, file, {})]
    if not isinstance(data, list):
        raise DataError(f"{file}: is a JSON {type(data).__name__}; {_KNOWN}")
    runs = []
    for number, entry in enumerate(data, 1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("test_id"), str):
            raise DataError(f"{file}: entry {number}: has no test_id; {_KNOWN}")
        runs.append(_run(entry["test_id"], entry, file, entry))
    return runs


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}; {_KNOWN}") from error


def _run(name: str, data: Any, file: Path, facts: Mapping[str, Any]) -> OldRun:
    if not isinstance(data, Mapping):
        raise DataError(f"{file}: is a JSON {type(data).__name__}; {_KNOWN}")
    if data.get("success") is False:
        return OldRun(name, "", facts=facts, failed=str(data.get("error") or "no reason given").splitlines()[0])
    trainer = next((t for t, keys in _KEYS.items() if all(key in data for key in keys)), None)
    if trainer is None:
        keys = ", ".join(map(str, [*data][:6])) or "none"
        raise DataError(f"{file}: {name}: has neither trainer's keys (its keys: {keys}); {_KNOWN}")
    read = _step_run if trainer == _STEPS else _vanilla_run
    numbers = _Numbers(data, f"{file}: {name}")
    return OldRun(name, trainer, facts=facts, seconds=numbers.one("elapsed_time", facts), **read(numbers))


def _step_run(numbers: _Numbers) -> dict[str, Any]:
    at, timed = numbers.many("iteration"), numbers.many("forward_time_ms")
    pairs = numbers.pairs("eval_iteration", "val_loss")
    last = max([*at, *(x for x, _ in pairs)], default=0)
    return {
        "evaluated": pairs,
        "iterations": int(last),
        "milliseconds": median(timed) if timed else None,
        "sparsity": 0.0,  # no step ever pruned a weight
    }


def _vanilla_run(numbers: _Numbers) -> dict[str, Any]:
    losses, at = numbers.many("val_losses"), numbers.many("iterations")
    config = numbers.data.get("config")
    every = config.get("eval_interval") if isinstance(config, Mapping) else None
    if len(at) != len(losses):  # an entry per logged window, not per evaluation
        step = every if isinstance(every, int) and every > 0 else 1
        at = [index * step for index in range(len(losses))]
    sparsities = numbers.many("sparsities")
    seconds, count = numbers.one("total_time"), numbers.one("total_iterations")
    return {
        "evaluated": tuple(zip(at, losses, strict=True)),
        "iterations": int(count or max(at, default=0)),
        "milliseconds": 1000 * seconds / count if seconds and count else None,
        "sparsity": sparsities[-1] if sparsities else 0.0,
    }


@dataclass(frozen=True)
class _Numbers:
    """Reads numbers and lists of numbers from a JSON object; other values raise DataError with their key."""

    data: Mapping[str, Any]
    where: str

    def many(self, key: str) -> Sequence[float]:
        values = self.data.get(key, [])
        if not isinstance(values, list) or not all(map(_is_number, values)):
            raise DataError(f"{self.where}: {key}: expected a list of numbers")
        return values

    def pairs(self, at: str, key: str) -> tuple[tuple[float, float], ...]:
        xs, ys = self.many(at), self.many(key)
        if len(xs) != len(ys):
            raise DataError(f"{self.where}: {key}: has {len(ys)} entries for {len(xs)} of {at}")
        return tuple(zip(xs, ys, strict=True))

    def one(self, key: str, data: Mapping[str, Any] | None = None) -> float | None:
        value = (self.data if key in self.data else data or {}).get(key)
        if value is not None and not _is_number(value):
            raise DataError(f"{self.where}: {key}: expected a number, got {value!r}")
        return value if value is None or math.isfinite(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first_line(file: Path) -> str:
    return next((line for line in file.read_text(errors="replace").splitlines() if line.strip()), "no reason given")
