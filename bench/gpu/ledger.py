"""Figures that survive later failures: each is written to disk as soon as it is known."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class Ledger:
    """A file of JSON lines, each with its part and the seconds since the ledger was opened."""

    def __init__(self, file: Path, *, until: float = float("inf")):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.until, self._began = file, until, time.monotonic()
        self.rows: dict[str, list[dict[str, Any]]] = {}  # of this session, by part

    @property
    def seconds(self) -> float:
        """Seconds since the ledger was opened."""
        return time.monotonic() - self._began

    @property
    def late(self) -> bool:
        """Whether the time limit has passed, so that no new part may begin."""
        return self.seconds > self.until

    def tell(self, part: str, **row: Any) -> None:
        """Writes a row to disk and prints it."""
        self.rows.setdefault(part, []).append(row)
        line = {"part": part, "at": round(self.seconds, 1), **row}
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        print("  ".join([part, *(f"{name} {short(value)}" for name, value in row.items() if value not in ("", None))]),
              flush=True)  # fmt: skip

    def keep(self, part: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Writes each row as it comes. An error or the time limit that ends the part early is a row as well."""
        try:
            for row in self._in_time(rows):
                self.tell(part, **row)
        except Exception as error:  # of any kind: other parts still run
            traceback.print_exc(limit=-4)
            self.tell(part, why=fault(error))
        return self.rows.get(part, [])

    def _in_time(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self.late:
            yield {"why": f"not begun: {self.seconds:.0f} s are over"}
            return
        for row in rows:
            yield row
            if self.late:
                yield {"why": f"ended early: {self.seconds:.0f} s are over"}
                return

    def run(self, parts: dict[str, Callable[[], Iterable[dict[str, Any]]]], expected: dict[str, float]) -> None:
        """Runs each part in turn, and records the seconds taken and the seconds expected."""
        for part, rows in parts.items():
            begin = self.seconds
            try:
                found = rows()
            except Exception as error:
                found = iter([{"why": fault(error)}])
            self.keep(part, found)
            self.tell("took", of=part, seconds=round(self.seconds - begin, 1), expected=expected.get(part))


def fault(error: Exception) -> str:
    """Formats the kind and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def short(value: object) -> str:
    """Formats a value for a table."""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e-2 else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    """Formats rows as a Markdown table, one column per field."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    lines = [heads, ["---"] * len(heads), *([short(row.get(name, "")) for name in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
