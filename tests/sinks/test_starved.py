"""A run that does not get its machine says so once, and one that does never."""

from __future__ import annotations

import pytest

from ratrain.events import Machine, Notice, PhaseStarted
from ratrain.sinks.starved import Starved


@pytest.fixture
def pass_time(window):
    """Has `seconds` go by, of which the run has so many of CPU time, and states an event."""
    now, told = {"wall": 100.0, "cpu": 1.0}, []
    sink = Starved(told.append, clock=lambda: now["wall"], cpu=lambda: now["cpu"])

    def pass_time(seconds, had, event=None):
        now["wall"] += seconds
        now["cpu"] += had
        sink(window() if event is None else event)
        return told

    return pass_time


def test_little_cpu_time_over_ten_seconds_is_told_once(pass_time):
    for _ in range(5):
        assert not pass_time(2.0, 0.9)
    (notice,) = pass_time(2.0, 0.9)
    assert isinstance(notice, Notice)
    assert notice.level == "warning"
    assert notice.message.startswith("the run had 4.5 s of CPU time in 10.0 s: other programs use")
    for _ in range(20):
        assert pass_time(2.0, 0.1) == [notice]


@pytest.mark.parametrize("cpus", [0.75, 1.0, 2.0, 64.0])
def test_a_run_that_keeps_a_core_busy_is_not_warned_about(pass_time, cpus):
    for _ in range(50):
        assert not pass_time(1.0, cpus)


def test_a_machine_that_grows_busy_later_is_seen(pass_time):
    for _ in range(100):
        assert not pass_time(1.0, 1.9)
    for _ in range(20):
        pass_time(1.0, 0.3)
    assert len(pass_time(1.0, 0.3)) == 1


def test_a_moment_without_cpu_is_no_reason(pass_time):
    for _ in range(10):
        for _ in range(9):
            pass_time(1.0, 1.0)
        assert not pass_time(2.0, 0.0)


def test_what_other_phases_take_does_not_count(pass_time):
    for _ in range(10):
        pass_time(0.0, 0.0, PhaseStarted("save"))
        assert not pass_time(30.0, 0.1)
        assert not pass_time(1.0, 1.0)


def test_other_events_in_between_do_not_hide_it(pass_time):
    for _ in range(12):
        pass_time(1.0, 0.2)
        pass_time(0.0, 0.0, Machine(1, 20.0, 1, None))
    assert len(pass_time(1.0, 0.2)) == 1
