"""Gate analysis: what the patches' probes say at the end of a run, and how they came there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ratrain.storage.run_log import RunLog, Series


def shown(log: RunLog) -> dict[str, dict[str, Series]]:
    """The probes worth a line: an effective gate that never differs from the raw one says nothing of its own."""
    return {
        patch: {
            probe: series
            for probe, series in probes.items()
            if not _same(series, probes.get(probe.removeprefix("effective "))) or not probe.startswith("effective ")
        }
        for patch, probes in log.probes.items()
    }


def _same(series: Series, raw: Series | None) -> bool:
    return raw is not None and np.allclose(
        series.values, raw.values, rtol=1e-4, atol=1e-6, equal_nan=True
    )  # but for rounding


def gate_rows(log: RunLog) -> list[tuple[str, ...]]:
    """A head line, then a line per probe: mean over layers and heads at the first and the last reading, then of the
    last one its spread (population standard deviation), least, greatest, and the mean of each layer."""
    rows = [("patch", "probe", "first", "last", "spread", "min", "max", "by layer")]
    for patch, probes in shown(log).items():
        for probe, series in probes.items():
            first, last = series.values[0], series.values[-1]
            numbers = (_of(first), _of(last), _of(last, np.std), _of(last, np.min), _of(last, np.max))
            rows.append((patch, probe, *numbers, " ".join(map(_of, last))))
    return rows


def _of(values: np.ndarray, summary: Callable[[np.ndarray], float] = np.mean) -> str:
    """The summary of those of `values` that are there, - where none is."""
    there = values[~np.isnan(values)]
    return f"{summary(there):.3g}" if len(there) else "-"
