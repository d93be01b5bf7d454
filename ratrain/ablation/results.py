"""What the runs of a study reached, read from their folders, as rows, files and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ratrain.ablation.plan import Arm, Plan
from ratrain.ablation.verdict import Verdict
from ratrain.atomic import write_file
from ratrain.engine.folder import RunFolder
from ratrain.report.figures import sweep_figure


@dataclass(frozen=True)
class Reached:
    """Where one run of an arm stands; `loss` is that of the last evaluation, None before the first."""

    init: int
    data: int
    folder: str
    status: str
    loss: float | None


@dataclass(frozen=True)
class Row:
    """One arm: what it costs, what its runs reached, and their differences to the baseline's run of the same seeds."""

    arm: str
    point: dict[str, Any]
    parameters: int
    train_flops_per_token: int
    kv_bytes_per_token: int
    runs: tuple[Reached, ...]
    differences: tuple[float, ...]  # nats per token; of seeds where both are done

    @property
    def losses(self) -> list[float]:
        return [run.loss for run in self.runs if run.status == "done" and run.loss is not None]

    @property
    def status(self) -> str:
        """How many runs are done, and what became of those that are not."""
        others = Counter(run.status for run in self.runs if run.status != "done")
        return ", ".join([f"{len(self.losses)}/{len(self.runs)}", *(f"{n} {word}" for word, n in others.items())])


def rows_of(plan: Plan, out: Path) -> list[Row]:
    """A row per arm, the baseline's first."""
    base = _reached(plan.base, plan, out)
    return [_row(arm, base, _reached(arm, plan, out)) for arm in plan.arms]


def _reached(arm: Arm, plan: Plan, out: Path) -> tuple[Reached, ...]:
    found = []
    for init, data in plan.seeds:
        folder = arm.folder(init, data)
        state = RunFolder(out / folder).read_state()
        found.append(Reached(init, data, folder, str(state.get("status", "not begun")), state.get("loss")))
    return tuple(found)


def _row(arm: Arm, base: Sequence[Reached], runs: Sequence[Reached]) -> Row:
    pairs = zip(base, runs, strict=True)
    both = [(b.loss, r.loss) for b, r in pairs if b.status == r.status == "done"]
    differences = tuple(r - b for b, r in both if b is not None and r is not None)
    built = arm.built
    costs = built.parameters, built.train_flops_per_token, built.kv_bytes_per_token
    return Row(arm.name, arm.point, *costs, tuple(runs), differences)


HEAD = ("arm", "val loss", "vs base", "interval", "verdict", "by seed", "parameters", "KV bytes/token", "runs")


def cells(rows: Sequence[Row], verdicts: Mapping[str, Verdict]) -> list[tuple[str, ...]]:
    """The table under HEAD: means over the seeds that are done, the effect beside its interval, which holds for all
    arms together, and the paired difference of each seed."""
    table = []
    for at, row in enumerate(rows):
        loss = f"{statistics.fmean(row.losses):.4f}" if row.losses else "-"
        effect = interval = word = each = "-"
        if at and row.differences:
            effect = f"{statistics.fmean(row.differences):+.4f}"
            each = " ".join(f"{value:+.4f}" for value in row.differences)
        if verdict := verdicts.get(row.arm):
            effect, word = f"{verdict.effect:+.4f}", verdict.word
            if all(map(math.isfinite, verdict.interval)):
                interval = f"{verdict.interval[0]:+.4f} to {verdict.interval[1]:+.4f}"
        costs = f"{row.parameters:,}", f"{row.kv_bytes_per_token:,}"
        table.append((row.arm, loss, effect, interval, word, each, *costs, row.status))
    return table


def write_study(plan: Plan, rows: Sequence[Row], verdicts: Mapping[str, Verdict], record: Any, out: Path) -> Path:
    """The study's folder, `<out>/studies/<name>`: results.json, results.csv, results.md, figures, links to its runs.

    `record` is what results.json says of the study's conclusion.
    """
    folder = out / "studies" / plan.name
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for row in rows:
        for run in row.runs:
            _link(folder / "runs" / f"{row.arm} {Path(run.folder).name}".replace("/", "-"), out / run.folder)
    study = {"id": plan.id, "title": plan.title, "file": plan.file, "seeds": plan.seeds, "arms": [*map(asdict, rows)]}
    study["conclusion"] = record
    write_file(folder / "results.json", [json.dumps(study, indent=1).encode()])
    write_file(folder / "results.csv", [_csv(rows).encode()])
    write_file(folder / "results.md", [_markdown(plan, rows, verdicts).encode()])
    if any(row.point and row.losses for row in rows):
        (folder / "figures").mkdir(exist_ok=True)
        points = [(row.arm.partition(" ")[0], row.point, row.losses) for row in rows if row.losses]
        write_file(folder / "figures" / "sweep.png", [sweep_figure(points, base=rows[0].arm)])
    return folder


def _link(link: Path, run: Path) -> None:
    if run.is_dir() and not link.is_symlink():
        link.symlink_to(os.path.relpath(run, link.parent))


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("arm", "seed_init", "seed_data", "status", "loss", "kv_bytes_per_token", "folder"))
    for row in rows:
        for run in row.runs:
            loss = "" if run.loss is None else repr(run.loss)
            writer.writerow((row.arm, run.init, run.data, run.status, loss, row.kv_bytes_per_token, run.folder))
    return text.getvalue()


def _markdown(plan: Plan, rows: Sequence[Row], verdicts: Mapping[str, Verdict]) -> str:
    lines = [f"# {plan.title or plan.id}", "", f"`{plan.file}`, {len(plan.seeds)} seeds, {plan.name}", ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(row)} |" for row in cells(rows, verdicts)]
    lines += ["", *(f"* {verdict.arm}: {verdict.word}; {verdict.why}" for verdict in verdicts.values())]
    return "\n".join(lines) + "\n"
