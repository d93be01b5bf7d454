"""Writes the report of a ladder from the records and events alone: an HTML page, and the same numbers as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ratrain.ablation.ladder.climb import Climbed
from ratrain.atomic import write_file
from ratrain.errors import UnavailableError
from ratrain.report.html import Cell, render
from ratrain.report.ladder.figures import ranking_figure, trend_figure
from ratrain.report.ladder.table import (
    OUTLOOK_HEAD,
    RUNG_HEAD,
    gain_rows,
    outlook_rows,
    rates_text,
    rung_rows,
    sentences,
)
from ratrain.strict_json import strict_json


def write_ladder_report(climbed: Climbed) -> Path:
    """Writes `report.html` to the ladder's folder, with ladder.json beside it, and returns its path."""
    folder = climbed.ladder.folder
    write_file(folder / "ladder.json", [json.dumps(ladder_record(climbed), indent=1, allow_nan=False).encode()])
    write_file(folder / "report.html", [_page(climbed).encode()])
    return folder / "report.html"


def ladder_record(climbed: Climbed) -> dict[str, Any]:
    """Returns the content of ladder.json: the plan, the state of the rungs, and the conclusion."""
    plan, found = climbed.ladder.plan, climbed.conclusion
    done = [
        {"rung": result.rung.number, "runs": sum(len(row.losses) for row in result.rows), "flops": result.flops_spent}
        for result in climbed.results
    ]
    facts = {**asdict(plan), "done": done, "why": climbed.why}
    return strict_json({**facts, "conclusion": found.record() if found else None})


def _page(climbed: Climbed) -> str:
    plan, found = climbed.ladder.plan, climbed.conclusion
    trends, rankings, missing = [], "", ""
    try:
        if found:
            trends = [(o.arm, o.word, o.why, trend_figure(o, climbed.results)) for o in found.outlooks.values()]
            rankings = ranking_figure(found, plan.base)
    except UnavailableError as error:
        missing = str(error)
    gains_head, gains = gain_rows(found, climbed.results) if found else ((), [])
    return render(
        "ladder.html.jinja",
        title=plan.title or plan.id,
        plan=plan,
        rates=rates_text(plan),
        found=found,
        why=climbed.why,
        outlook_head=OUTLOOK_HEAD,
        outlooks=[(*row[:2], *map(_two_lines, row[2:])) for row in outlook_rows(found)] if found else [],
        trends=trends,
        rankings=rankings,
        missing=missing,
        gains_head=gains_head,
        gains=gains,
        rung_head=RUNG_HEAD,
        rungs=rung_rows(climbed),
        sentences=list(sentences(climbed)),
        studies=[(result.rung.study, _study_page(climbed, result.rung.study)) for result in climbed.results],
    )


def _two_lines(cell: str) -> str | Cell:
    """Puts the interval that ends a cell on a line of its own: six columns fit the page then."""
    value, bracket, interval = cell.partition(" [")
    return Cell(value, (f"[{interval}",)) if bracket else cell


def _study_page(climbed: Climbed, study: str) -> str:
    """Returns the relative path of a rung's own page."""
    return os.path.relpath(climbed.ladder.out / "studies" / study / "report.html", climbed.ladder.folder)
