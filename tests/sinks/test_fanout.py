"""One emit for many sinks."""

from __future__ import annotations

import pytest

from ratrain.errors import DiskError
from ratrain.events import Evaluated, Notice
from ratrain.sinks.fanout import Fanout

EVENT = Evaluated(1, 2.0, 3, 4.0)


class Broken:
    """Fails at every event."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, event):
        self.calls += 1
        raise self.error


def test_every_sink_hears_every_event_in_order():
    heard, fanout = [], Fanout()
    for name in "abc":
        fanout.add(lambda event, name=name: heard.append((name, event)))
    fanout(EVENT)
    assert heard == [(name, EVENT) for name in "abc"]


def test_a_sink_that_fails_is_dropped_told_of_and_missed_by_none():
    before, after, broken, fanout = [], [], Broken(RuntimeError("no route")), Fanout()
    for sink in (before.append, broken, after.append):
        fanout.add(sink)
    fanout(EVENT)
    fanout(EVENT)
    notice = Notice("Broken failed and is dropped: RuntimeError: no route", "warning")
    assert broken.calls == 1
    assert before == [EVENT, notice, EVENT]
    assert after == [notice, EVENT, EVENT]


def test_two_that_fail_at_once_are_both_dropped():
    heard, fanout, both = [], Fanout(), [Broken(RuntimeError("a")), Broken(RuntimeError("b"))]
    for sink in (*both, heard.append):
        fanout.add(sink)
    fanout(EVENT)
    fanout(EVENT)
    assert [sink.calls for sink in both] == [1, 1]
    assert [type(event) for event in heard].count(Evaluated) == 2
    assert {event.message[-1] for event in heard if isinstance(event, Notice)} == {"a", "b"}


def test_an_essential_sink_that_fails_ends_the_run():
    fanout = Fanout()
    fanout.add(Broken(DiskError("full")), essential=True)
    with pytest.raises(DiskError, match="full"):
        fanout(EVENT)


def test_essential_sinks_hear_first():
    heard, fanout = [], Fanout()
    fanout.add(lambda event: heard.append("bar"))
    fanout.add(lambda event: heard.append("file"), essential=True)
    fanout(EVENT)
    assert heard == ["file", "bar"]


def test_a_request_to_stop_is_no_failure_of_a_sink():
    fanout = Fanout()
    fanout.add(Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fanout(EVENT)


class Closing:
    def __init__(self, error=None):
        self.closed, self.error = False, error

    def __call__(self, event):
        pass

    def close(self):
        self.closed = True
        if self.error:
            raise self.error


def test_all_that_can_be_closed_are():
    fanout, sinks = Fanout(), [Closing(), Closing()]
    fanout.add(sinks[0], essential=True)
    fanout.add(sinks[1])
    fanout.add(print)
    fanout.close()
    assert all(sink.closed for sink in sinks)


def test_one_that_fails_to_close_keeps_no_other_open():
    fanout, sinks = Fanout(), [Closing(), Closing(RuntimeError("stuck")), Closing()]
    fanout.add(sinks[0], essential=True)
    for sink in sinks[1:]:
        fanout.add(sink)
    fanout.close()
    assert all(sink.closed for sink in sinks)


class Named(Broken):
    """Has a name to be reported under."""

    name = "elsewhere"


def test_a_sink_is_reported_by_its_own_name_in_one_line():
    heard, fanout = [], Fanout()
    for sink in (heard.append, Named(RuntimeError("no route\nto host"))):
        fanout.add(sink)
    fanout(EVENT)
    assert heard == [EVENT, Notice("elsewhere failed and is dropped: RuntimeError: no route", "warning")]


def test_what_goes_wrong_at_the_end_is_heard_by_those_added_before():
    heard, files, fanout, last = [], [], Fanout(), Closing()
    fanout.add(files.append, essential=True)
    for sink in (heard.append, Closing(RuntimeError("stuck")), last):
        fanout.add(sink)
    fanout.close()
    assert heard == files == [Notice("Closing failed and is dropped: RuntimeError: stuck", "warning")]
    assert last.closed
