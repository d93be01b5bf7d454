"""Gate analysis: values of the patches' probes at the start and at the end of a run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ratrain.storage.run_log import RunLog, Series


def shown(log: RunLog) -> dict[str, dict[str, Series]]:
    """Selects the probes to show, by patch; leaves out an effective gate that always equals its raw gate."""
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
    )  # except for rounding


def gate_rows(log: RunLog) -> list[tuple[str, ...]]:
    """Returns a head line, then a line per probe.

    A line holds the mean over layers and heads at the first and the last reading, then spread (population standard
    deviation), minimum, maximum and the mean of each layer at the last reading.
    """
    rows = [("patch", "probe", "first", "last", "spread", "min", "max", "by layer")]
    for patch, probes in shown(log).items():
        for probe, series in probes.items():
            first, last = series.values[0], series.values[-1]
            numbers = (_of(first), _of(last), _of(last, np.std), _of(last, np.min), _of(last, np.max))
            rows.append((patch, probe, *numbers, " ".join(map(_of, last))))
    return rows


def _of(values: np.ndarray, summary: Callable[[np.ndarray], float] = np.mean) -> str:
    """Formats the summary of the non-NaN `values`; "-" if all are NaN."""
    there = values[~np.isnan(values)]
    return f"{summary(there):.3g}" if len(there) else "-"
