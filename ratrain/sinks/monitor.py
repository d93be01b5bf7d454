"""Samples host and device load at intervals and publishes it as events."""

from __future__ import annotations

import time
from typing import Any

import psutil

from ratrain.events import Emit, Event, Machine, Window

_EVERY = 5.0  # seconds


class Monitor:
    """Publishes a Machine event with the first window after every `_EVERY` seconds; `gpu` is the UUID for NVML."""

    def __init__(self, emit: Emit, *, gpu: str | None = None):
        self._emit, self._due, self._uuid = emit, 0.0, gpu
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the interval
        self._nvml: Any = _nvml() if gpu else None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Window) or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        gpu = self._gpu() if self._nvml else None
        self._emit(Machine(event.step, self._process.cpu_percent(), self._process.memory_info().rss, gpu))

    def _gpu(self) -> dict[str, float]:
        handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        used = self._nvml.nvmlDeviceGetUtilizationRates(handle)
        return {
            "busy_percent": float(used.gpu),
            "memory": float(self._nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "watts": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "celsius": float(self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU)),
        }


def _nvml() -> Any:
    """Returns the initialized NVML module; None if it is not installed or finds no driver."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - an extra

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml
