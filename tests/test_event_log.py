"""Events come back from their lines as they went in, typed, and old or damaged lines are told apart."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import MISSING, fields, is_dataclass

import pytest

from ratrain.errors import DataError
from ratrain.event_log import encode, read_events
from ratrain.events import Evaluated, Event

KINDS = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__ == "ratrain.events"}


def sample(hint):
    """A value of that type; floats that JSON does not have are among them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return (sample(args[0]),) * 2
    if origin is list:
        return [sample(args[0])]
    if origin is dict:
        return {"key": sample(args[1])}
    if args:  # one of several types
        return sample(args[0])
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{field.name: sample(hints[field.name]) for field in fields(hint)})
    return {str: "text", int: 3, float: math.inf, bool: True, typing.Any: 1.5}[hint]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_read_back_as_it_was_written(kind, tmp_path):
    hints = typing.get_type_hints(kind)
    event = kind(**{field.name: sample(hints[field.name]) for field in fields(kind)})
    file = tmp_path / "events.jsonl"
    file.write_text(encode(event, seconds=1.0) + "\n")
    assert list(read_events(file)) == [event]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_field_that_is_missing_is_named(kind, tmp_path):
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps({"event": kind.__name__}))
    if required:
        with pytest.raises(DataError, match=rf"holds an event that ratrain did not write: {kind.__name__}\.\w+: "):
            list(read_events(file))


def test_numbers_that_are_not_finite_come_back(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text(encode(Evaluated(1, math.nan, 2, -math.inf, (math.inf,)), seconds=0.0))
    (event,) = read_events(file)
    assert isinstance(event, Evaluated)
    assert math.isnan(event.loss)
    assert (event.seconds, event.parts) == (-math.inf, (math.inf,))


def test_unknown_kinds_unknown_fields_and_torn_lines_are_passed_over(tmp_path):
    file = tmp_path / "events.jsonl"
    known = {"event": "Evaluated", "step": 1, "loss": 2.0, "tokens": 3, "seconds": 4.0, "of a later version": 5}
    lines = [json.dumps({"event": "OfALaterVersion"}), "[1]", json.dumps(known), '{"event": "Window", "st']
    file.write_text("\n".join(lines))
    assert list(read_events(file)) == [Evaluated(1, 2.0, 3, 4.0)]


def test_events_that_earlier_versions_wrote_are_read():
    record = {"event": "Compiled", "seconds": 1.0, "graphs": 2, "expected": 2, "cached": False}
    event = Event.from_record(record)
    assert event and event.record()["what"] == "train"
