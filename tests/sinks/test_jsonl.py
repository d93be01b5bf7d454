"""events.jsonl: strict, whole, each step once."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os

import pytest

from ratrain import events
from ratrain.errors import CannotCreateError, DiskError
from ratrain.event_log import encode
from ratrain.sinks.jsonl import Jsonl, JsonStream


def refuse(constant):
    raise ValueError(constant)


def strict(line):
    return json.loads(line, parse_constant=refuse)


def read(path):
    return [strict(line) for line in path.read_text().splitlines()]


def write(path, *stated):
    sink = Jsonl(path)
    for event in stated:
        sink(event)
    sink.close()


def test_every_event_is_one_line_that_holds_all_of_it(tmp_path, one_of_each):
    write(tmp_path / "e.jsonl", *one_of_each)
    lines = read(tmp_path / "e.jsonl")
    assert len(lines) == len(one_of_each)
    for line, event in zip(lines, one_of_each, strict=True):
        fields = json.loads(json.dumps(dataclasses.asdict(event)))
        assert {"event": type(event).__name__, **fields}.items() <= line.items()
        assert line["schema"] == 1


def test_when_it_was_said_and_how_long_it_took_are_two_things(window):
    line = strict(encode(window(seconds=0.5), seconds=12.3456))
    assert (line["at"], line["seconds"]) == (12.346, 0.5)


def test_numbers_that_are_not_finite_are_named(window):
    line = strict(encode(window(losses=(math.nan, math.inf, -math.inf), mfu=math.nan), seconds=0))
    assert (line["losses"], line["mfu"]) == (["nan", "inf", "-inf"], "nan")


@pytest.mark.parametrize("text", ["two\nlines", "\u2028 \x85 \x0b", "\x00", "\ud800", "é 漢"])
def test_any_text_stays_on_its_line(tmp_path, text):
    write(tmp_path / "e.jsonl", events.Sampled(1, text))
    write(tmp_path / "e.jsonl", events.Sampled(2, "next"))
    assert [line["text"] for line in read(tmp_path / "e.jsonl")] == [text, "next"]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_last_line_torn_by_a_crash_is_dropped(tmp_path, window, cut):
    path = tmp_path / "e.jsonl"
    write(path, window(5), window(10))
    path.write_bytes(path.read_bytes()[:-cut])
    write(path, window(15))
    assert [line["step"] for line in read(path)] == [5, 15]


@pytest.mark.parametrize("torn", [b"\0\0\0\0", b"\xff\xfe", b"\0" * 100 + b"\n", b"{\n", b"[1]\n"])
def test_garbage_left_by_a_power_failure_is_dropped(tmp_path, window, torn):
    path = tmp_path / "e.jsonl"
    write(path, window(5))
    path.write_bytes(path.read_bytes() + torn)
    write(path, window(10))
    assert [line["step"] for line in read(path)] == [5, 10]


def test_resuming_drops_what_was_said_of_later_steps(tmp_path, window, started):
    path = tmp_path / "e.jsonl"
    write(path, started(), window(5), window(10), events.Notice("kept"), window(15))
    write(path, events.Resumed(10, "step-10"), started(), window(15))
    assert [line.get("step") for line in read(path)] == [None, 5, 10, None, 10, None, 15]


def test_starting_over_drops_every_step(tmp_path, window, started):
    path = tmp_path / "e.jsonl"
    write(path, started(), window(5))
    write(path, started(), window(5))
    assert [line.get("step") for line in read(path)] == [None, None, 5]


def test_each_line_is_on_disk_before_the_next_event(tmp_path, window):
    sink = Jsonl(tmp_path / "e.jsonl")
    for step in (1, 2):
        sink(window(step))
        assert read(tmp_path / "e.jsonl")[-1]["step"] == step
    sink.close()


def test_a_file_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(CannotCreateError, match=r"e\.jsonl"):
        Jsonl(tmp_path / "missing" / "e.jsonl")


def test_a_full_disk_is_told(tmp_path, window):
    sink = Jsonl(tmp_path / "e.jsonl")
    sink.close()
    vars(sink)["_file"] = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(DiskError, match=r"e\.jsonl: cannot be written: No space left"):
        sink(window())


def test_the_stream_has_the_lines_of_the_file(one_of_each):
    stream = io.StringIO()
    sink = JsonStream(stream)
    for event in one_of_each:
        sink(event)
    lines = [strict(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in one_of_each]
