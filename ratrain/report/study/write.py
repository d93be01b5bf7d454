"""Writes the report of a study from events alone: an HTML page, and the same numbers as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Reached, Row, windows_of
from ratrain.atomic import write_file
from ratrain.report.study.page import study_page
from ratrain.report.study.table import GUARD_HEAD, HEAD, cells, guard_rows, plan_facts
from ratrain.strict_json import strict_json


def write_study_report(study: Study, rows: Sequence[Row], found: Conclusion | None) -> Path:
    """Writes `report.html` to the study's folder and returns its path.

    Beside it are results.json, .csv and .md, the figure of the study's grids, and links to its runs. `rows` are
    rows_of(study), `found` is the conclusion from them.
    """
    folder = study.folder
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for row in rows:
        for run in row.runs:
            link = f"{row.arm.name} {Path(run.folder).name}".replace("/", "-")
            _link(folder / "runs" / link, study.out / run.folder)
    write_file(
        folder / "results.json", [json.dumps(study_record(study, rows, found), indent=1, allow_nan=False).encode()]
    )
    write_file(folder / "results.csv", [_csv(rows).encode()])
    write_file(folder / "results.md", [_markdown(study, rows, found).encode()])
    page, sweep = study_page(study, rows, found)
    if sweep:
        (folder / "figures").mkdir(exist_ok=True)
        write_file(folder / "figures" / "sweep.png", [sweep])
    write_file(folder / "report.html", [page.encode()])
    return folder / "report.html"


def _link(link: Path, run: Path) -> None:
    if run.is_dir() and not link.is_symlink():
        link.symlink_to(os.path.relpath(run, link.parent))


def _run(run: Reached) -> dict[str, Any]:
    told = {name: getattr(run, name) for name in ("init", "data", "folder", "status", "loss")}
    return told if run.accuracy is None else {**told, "accuracy": run.accuracy}


def study_record(study: Study, rows: Sequence[Row], found: Conclusion | None) -> dict[str, Any]:
    """Returns the content of results.json: arms with the loss of each run, costs, and the conclusion."""
    now = study.now
    facts = ("role", "control", "point", "parameters", "train_flops_per_token", "kv_bytes_per_token", "tokens")
    arms = [
        {
            "arm": row.arm.name,
            **{name: getattr(row.arm, name) for name in facts},
            "runs": [_run(run) for run in row.runs],
            "differences": row.differences,
        }
        for row in rows
    ]
    record = {"id": now.id, "title": now.title, "file": now.file, "seeds": now.seeds, "hash": now.hash, "arms": arms}
    record |= {"windows": windows_of(rows)}
    record |= {"costs": {name: asdict(cost) for name, cost in study.costs.items()}, "checked": study.checked}
    return strict_json({**record, "conclusion": found.record() if found else None})


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("arm", "role", "seed_init", "seed_data", "status", "loss", "kv_bytes_per_token", "folder"))
    for row in rows:
        for run in row.runs:
            loss = "" if run.loss is None else repr(run.loss)
            seeds = run.init, run.data
            writer.writerow(
                (row.arm.name, row.arm.role, *seeds, run.status, loss, row.arm.kv_bytes_per_token, run.folder)
            )
    return out.getvalue()


def _markdown(study: Study, rows: Sequence[Row], found: Conclusion | None) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [f"# {study.now.title or study.now.id}", "", "; ".join(f"{n}: {t}" for n, t in plan_facts(study, rows)), ""]
    lines += [f"* **{warning}**" for warning in found.warnings] if found else []
    lines += ["", line(HEAD), f"|{' --- |' * len(HEAD)}", *map(line, cells(rows, found)), ""]
    lines += [f"* {v.arm}: {v.word}; {v.why}" for v in found.judgement.verdicts] if found else ["No verdict yet."]
    if found and found.guards:
        lines += ["", line(GUARD_HEAD), f"|{' --- |' * len(GUARD_HEAD)}", *map(line, guard_rows(found))]
    return "\n".join(lines) + "\n"
