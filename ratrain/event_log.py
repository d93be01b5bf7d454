"""Encodes events as lines of events.jsonl, and decodes them to typed events.

JSON has no non-finite numbers, so these are written as the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratrain.errors import DataError
from ratrain.events import Event

_UNREADABLE = (ValueError, RecursionError)  # a line truncated by a crash, or not JSON


def encode(event: Event, *, seconds: float) -> str:
    """Returns the event as one line of strict JSON; `seconds`, the age of the process, becomes `at`."""
    return json.dumps({"schema": 1, "at": round(seconds, 3), **_strict(event.record())}, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value


def records(text: str) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects in `text`, one a line; skips invalid lines, since the last one may be incomplete."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except _UNREADABLE:
            continue
        if isinstance(record, dict):
            yield record


def read_events(file: Path) -> Iterator[Event]:
    """Yields the events of a file, oldest first; skips kinds unknown to this version.

    Raises OSError, and DataError for an event whose fields do not match its kind.
    """
    for record in records(file.read_text(errors="replace")):
        try:
            event = Event.from_record(record)
        except ValueError as error:
            raise DataError(f"{file}: holds an event that ratrain did not write: {error}") from error
        if event is not None:
            yield event
