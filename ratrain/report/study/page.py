"""The page of a study: its verdicts, their evidence, and the commands to reproduce them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from html import escape

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row
from ratrain.errors import UnavailableError
from ratrain.report.compare import NONE, environment_table, peak_memory, settings
from ratrain.report.html import WIDE_STYLE, document, folded, grid, sections
from ratrain.report.study.plots import plots
from ratrain.report.study.table import (
    COMPARED,
    first_log,
    headed,
    loss_text,
    plan_facts,
    ratio,
    span,
    two_lines,
    verdict_of,
)
from ratrain.report.study.verdicts import later_verdicts, tuned_verdicts, verdicts

_KINDS = {
    "ulp": "one weight moved by one unit in the last place", "init": "other initial weights",
    "order": "other order of batches",
}  # fmt: skip


def study_page(study: Study, rows: Sequence[Row], found: Conclusion | None) -> tuple[str, bytes]:
    """Builds the page as HTML, and the figure of the study's grids as PNG, empty if the study has no grid."""
    shown = _ordered(study, rows, found)
    missing, drawn, sweep = "", {}, b""
    try:
        drawn, sweep = plots(study, rows, shown, found)
    except UnavailableError as error:
        missing = f"<p class=quiet>{escape(str(error))}.</p>"
    parts = [
        ("verdicts", "Verdicts", verdicts(study, rows, shown, found) + missing),
        ("tuned", "At each arm's own best setting", tuned_verdicts(rows, found)),
        ("later", "With what was added later", later_verdicts(found)),
        ("effects", "Effects", drawn.get("effects", "")),
        ("curves", "Learning curves", drawn.get("curves", "")),
        ("ruler", "What effects are worth in tokens", drawn.get("ruler", "") + _budgets(rows)),
        ("noise", "Noise floor", _noise(study, found, drawn.get("noise", ""))),
        ("costs", "Throughput and memory", _costs(study, shown, drawn.get("costs", ""))),
        ("gates", "Gates and kept shares", drawn.get("gates", "")),
        ("configuration", "What each arm changes", _configuration(shown)),
        ("environment", "Environment", _environment(rows)),
        ("reproduce", "How to reproduce it", _reproduce(study, shown)),
    ]
    title = study.now.title or study.now.id
    head = f"<header><h1>{escape(title)}</h1>{_lead(study)}{_warnings(found)}</header>"
    return document(title, head + sections(parts), WIDE_STYLE), sweep


def _ordered(study: Study, rows: Sequence[Row], found: Conclusion | None) -> list[Row]:
    """Returns the compared rows with a begun run: the baseline, the arms by effect from the best on, then the controls
    and A/A arms."""

    def place(row: Row) -> tuple[bool, bool, float]:
        verdict, serves = verdict_of(row, found), row.arm.role == "control" or row.arm.twin != "none"
        effect = verdict.effect if verdict else row.mean
        return row.arm.role != "base", serves, effect if effect is not None and math.isfinite(effect) else math.inf

    return sorted((row for row in rows if row.arm.role in COMPARED and row.begun), key=place)


def _lead(study: Study) -> str:
    facts = " \N{MIDDLE DOT} ".join(f"<b>{escape(name)}</b> {escape(value)}" for name, value in plan_facts(study))
    lines = [facts]
    if study.checked:
        lines.append(f"<b>Checked before any training:</b> {escape('; '.join(study.checked))}")
    arms = [arm.name for arm in study.now.arms if study.is_later(arm.name)]
    seeds = [str(init) for init, data in study.now.seeds if (init, data) not in study.plan.seeds]
    later = [f"{what} {', '.join(of)}" for what, of in (("arms", arms), ("seeds", seeds)) if of]
    lines.append(f"<b>Added after the study had begun:</b> {escape('; '.join(later)) if later else 'nothing'}")
    return "".join(f"<p class=lead>{line}</p>" for line in lines)


def _warnings(found: Conclusion | None) -> str:
    if not found or not found.warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in found.warnings)
    return f'<aside class="warnings" role="note"><h2>Before you believe it</h2><ul>{items}</ul></aside>'


def _budgets(rows: Sequence[Row]) -> str:
    body = [row for row in rows if row.arm.role == "ruler" and row.begun]
    table = [(row.arm.name, f"{row.arm.tokens or 0:,}", loss_text(row), row.status) for row in body]
    return folded("The baseline at other budgets", grid(("arm", "tokens", "val loss", "runs"), table))


def _noise(study: Study, found: Conclusion | None, drawn: str) -> str:
    if not found:
        return ""
    judgement, rows = found.judgement, []
    if math.isfinite(judgement.sd):
        df = f"{judgement.df:.0f}" if math.isfinite(judgement.df) else NONE
        rows.append((two_lines("pooled", "over arms, within a seed"), f"{judgement.sd:.5f}", NONE, df))
    for kind, part in found.noise.items():
        ends = math.sqrt(part.interval[0]), math.sqrt(part.interval[1])
        cell = two_lines(f"A/A {kind}", _KINDS.get(kind, ""))
        rows.append((cell, f"{math.sqrt(part.variance):.5f}", span(ends, "[{:.5f}, {:.5f}]"), f"{part.df:.0f}"))
    text = "<p>What a difference of two runs must stand out from: standard deviations in nats per token.</p>"
    text += grid(("source", "sd", "95 % interval", "degrees of freedom"), rows)
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _floor_facts(study, found))
    return f"{text}<ul>{facts}</ul>{drawn}"


def _floor_facts(study: Study, found: Conclusion) -> Iterator[str]:
    if found.pairing:
        low, high = found.pairing.interval
        yield f"Pairing by seed leaves {found.pairing.ratio:.3f} [{low:.3f}, {high:.3f}] of the unpaired variance."
    if found.evaluation:
        most = max(found.evaluation.values())
        yield (
            f"Another validation set of this size, of other {found.unit}s, would move a difference by {most:.5f} or "
            "less (standard error); verdicts have it in them."
        )
    else:
        yield "The noise of the evaluation is not known: verdicts hold for these validation windows."
    if math.isfinite(found.detectable):
        yield f"{len(study.plan.seeds)} seeds find an effect of {found.detectable:.4f} four times of five."


def _costs(study: Study, shown: Sequence[Row], drawn: str) -> str:
    base = _peak(shown[0]) if shown and shown[0].arm.role == "base" else 0
    rows = []
    for row in shown:
        cost, peak, timed = study.costs.get(row.arm.name), _peak(row), (NONE, NONE)
        if cost:
            timed = (
                f"{1000 * cost.seconds:.2f}",
                two_lines(f"{cost.ratio:.3f}", span(cost.interval, "[{:.3f}, {:.3f}]")),
            )
        held = (f"{peak / 2**20:,.0f}", ratio(peak, base)) if peak else (NONE, NONE)
        rows.append((row.arm.name, *timed, *held))
    where = f" on {study.machine}" if study.machine else ""
    known = f"Step times are measured in isolation{escape(where)}, each arm's in turn with the baseline's, with 95 % "
    known += "intervals of the ratio. " if study.costs else ""
    text = known if study.costs else "The cost of a step in isolation has not been measured. "
    text += (
        "Tokens per second of runs that ran side by side share a machine and are not comparable: they are not shown "
    )
    text += "as a ratio. Memory is the most that a run held: of the device on a GPU, of the whole process on a CPU."
    head = ("arm", "step, ms", "ratio of steps", "peak MiB", "ratio of peaks")
    return f"<p>{text}</p>{grid(head, rows, first='base', spare=head[1:3])}{drawn}"


def _peak(row: Row) -> int:
    return max((peak_memory(run.log) for run in row.runs if run.log), default=0)


def _configuration(shown: Sequence[Row]) -> str:
    if not shown or shown[0].arm.role != "base":
        return ""
    base, text = settings(first_log(shown[0])), ""
    for row in shown[1:]:
        own = settings(first_log(row))
        unlike = [key for key in dict.fromkeys([*base, *own]) if base.get(key) != own.get(key)]
        table = [(key, base.get(key, NONE), own.get(key, NONE)) for key in unlike]
        named = ", ".join(unlike[:4]) + (f" and {len(unlike) - 4} more" if len(unlike) > 4 else "")
        summary = headed(row.arm.name, named or "nothing")
        silent = "" if base and own else "<p>No manifest is on record.</p>"
        text += folded(
            summary, silent or grid(("key", shown[0].arm.name, "here"), table) or "<p>The same keys throughout.</p>"
        )
    return text


def _environment(rows: Sequence[Row]) -> str:
    logs = {f"{row.arm.name} s{run.init}": run.log for row in rows for run in row.runs if run.log}
    return environment_table(logs) if logs else ""


def _reproduce(study: Study, shown: Sequence[Row]) -> str:
    arm = next((row.arm for row in shown if row.arm.role != "base"), study.now.base)
    lines = (
        f"ratrain --ablate {shlex.quote(study.now.file)} --scale {study.now.scale}",
        f"ratrain replay {study.folder.name} --arm {shlex.quote(arm.name)} --seed {arm.seeds[0][0]}",
    )
    text = "<p>The first command runs whatever of the study is missing, and writes this page anew from events alone. "
    text += "The second trains one run again and compares it with its log step by step; any arm and seed will do.</p>"
    return f"{text}<pre>{escape(chr(10).join(lines))}</pre><p class=quiet>Plan {study.now.hash}</p>"
