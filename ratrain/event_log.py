"""Lines of events.jsonl: the one place that writes events as JSON and reads them back, typed.

A number that is not finite stands there by its name ("nan", "inf", "-inf"), since JSON has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratrain.errors import DataError
from ratrain.events import Event

_UNREADABLE = (ValueError, RecursionError)  # a line that a crash has cut, or that is no JSON


def encode(event: Event, *, seconds: float) -> str:
    """One line of strict JSON. `seconds` is the age of the process, which becomes `at`."""
    return json.dumps({"schema": 1, "at": round(seconds, 3), **_strict(event.record())}, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value


def records(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of whole lines; others are passed over: the last line may still be in the writing."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except _UNREADABLE:
            continue
        if isinstance(record, dict):
            yield record


def read_events(file: Path) -> Iterator[Event]:
    """The events of a file, oldest first; kinds that this version does not know are passed over.

    Raises OSError, and DataError for an event whose fields are not those of its kind.
    """
    for record in records(file.read_text(errors="replace")):
        try:
            event = Event.from_record(record)
        except ValueError as error:
            raise DataError(f"{file}: holds an event that ratrain did not write: {error}") from error
        if event is not None:
            yield event
