"""The load beside the run, with windows, not more often than it is worth."""

from __future__ import annotations

import os

import psutil
import pytest

from ratrain.events import Evaluated
from ratrain.sinks import monitor
from ratrain.sinks.monitor import Monitor


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = [100.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(monitor, "_nvml", lambda: None)
    return now


def test_it_states_the_load_with_a_window_and_then_waits(clock, window):
    heard = []
    sink = Monitor(heard.append)
    for seconds, step in ((100.0, 1), (104.9, 2), (105.0, 3), (109.9, 4), (200.0, 5)):
        clock[0] = seconds
        sink(window(step))
    assert [event.step for event in heard] == [1, 3, 5]


def test_other_events_are_none_of_its_business(clock):
    heard = []
    Monitor(heard.append)(Evaluated(1, 2.0, 3, 4.0))
    assert not heard


def test_what_it_states_is_this_process(clock, window):
    heard = []
    Monitor(heard.append)(window(1))
    (machine,) = heard
    assert machine.memory == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.1)
    assert machine.cpu_percent >= 0
    assert machine.gpu is None


class Nvml:
    """What NVML answers on a machine with two GPUs."""

    NVML_TEMPERATURE_GPU = 0

    @staticmethod
    def nvmlDeviceGetHandleByUUID(uuid):  # noqa: N802 - their names
        return {"GPU-1": 1}[uuid]

    @staticmethod
    def nvmlDeviceGetUtilizationRates(index):  # noqa: N802
        return type("Rates", (), {"gpu": 90 + index})

    @staticmethod
    def nvmlDeviceGetMemoryInfo(index):  # noqa: N802
        return type("Memory", (), {"used": 1 << 30})

    @staticmethod
    def nvmlDeviceGetPowerUsage(index):  # noqa: N802
        return 250_000

    @staticmethod
    def nvmlDeviceGetTemperature(index, kind):  # noqa: N802
        return 61


def test_a_gpu_is_read_by_its_uuid_in_watts_and_bytes(clock, window, monkeypatch):
    monkeypatch.setattr(monitor, "_nvml", lambda: Nvml)
    heard = []
    Monitor(heard.append, gpu="GPU-1")(window(1))
    assert heard[0].gpu == {"busy_percent": 91.0, "memory": float(1 << 30), "watts": 250.0, "celsius": 61.0}
