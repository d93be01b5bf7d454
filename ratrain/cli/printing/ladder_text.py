"""Formats a ladder's results for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ratrain.ablation.ladder.climb import Climbed
from ratrain.cli.printing.tables import table
from ratrain.report.ladder.table import (
    OUTLOOK_HEAD,
    RUNG_HEAD,
    gain_rows,
    outlook_rows,
    predictions,
    rung_rows,
    sentences,
)


def ladder_lines(climbed: Climbed, at: Sequence[float] = ()) -> Iterator[str]:
    """Yields the results line by line, with predictions at `at` FLOPs."""
    found = climbed.conclusion
    yield table([RUNG_HEAD, *rung_rows(climbed)])
    yield ""
    if found:
        head, rows = gain_rows(found, climbed.results)
        yield table([head, *rows])
        yield ""
        yield table([OUTLOOK_HEAD, *outlook_rows(found)])
        yield ""
        if told := predictions(climbed, at):
            yield from (table(told), "")
    yield from sentences(climbed)
