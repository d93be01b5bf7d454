"""Formats a study's results for a terminal: table, noise behind the verdicts, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ratrain.ablation.conclusion import Conclusion
from ratrain.ablation.record import Study
from ratrain.ablation.results import Row, windows_of
from ratrain.cli.printing.tables import table
from ratrain.report.study.table import GUARD_HEAD, HEAD, cells, guard_rows, plan_facts


def study_lines(study: Study, rows: Sequence[Row], found: Conclusion | None) -> Iterator[str]:
    """Yields the results line by line."""
    begun = [row for row in rows if row.begun]
    yield table([HEAD, *cells(begun, found)])
    yield ""
    if len(begun) < len(rows):
        yield f"{len(rows) - len(begun)} arms of the plan have not begun"
    if found:
        yield from _noise(found)
        yield from _needs(found)
        if found.guards:
            yield from ("", table([GUARD_HEAD, *guard_rows(found)]), "")
        yield from (f"warning: {warning}" for warning in found.warnings)
    if rates := dict(plan_facts(study, rows)).get("learning rates"):
        yield f"learning rates {rates}"
    windows = windows_of(rows)
    yield f"plan {study.plan.hash[:8]}" + (f", validation windows {windows[:8]}" if windows else "")


def _noise(found: Conclusion) -> Iterator[str]:
    judgement = found.judgement
    if not judgement.looks:
        yield "no verdicts: every arm must finish at least three seeds first"
    sds = [verdict.sd for verdict in judgement.verdicts if math.isfinite(verdict.sd)]
    if sds:
        ends = (
            f"from {min(sds):.4f} to {max(sds):.4f} by arm"
            if len(sds) > 1
            else f"{judgement.df:.0f} degrees of freedom"
        )
        yield f"noise of a difference within a seed: {judgement.sd:.4f} nats ({ends})"
    for kind, part in found.noise.items():
        low, high = (math.sqrt(limit) for limit in part.interval)
        yield f"  A/A {kind}: {math.sqrt(part.variance):.4f} [{low:.4f}, {high:.4f}]"
    if found.pairing:
        low, high = found.pairing.interval
        gain = f"{found.pairing.ratio:.2f} [{low:.2f}, {high:.2f}] of the unpaired variance"
        yield f"pairing by seed: r = {found.pairing.r:.2f}, which leaves {gain}"
    if found.evaluation:
        low, high = min(found.evaluation.values()), max(found.evaluation.values())
        yield f"noise of the evaluation: {low:.4f} to {high:.4f}, over other {found.unit}s"
    if found.more:
        yield foretold(found.more)


def _needs(found: Conclusion) -> Iterator[str]:
    """Yields the number of seeds that would decide the arms without a verdict."""
    seeds = {verdict.arm: verdict.seeds for verdict in found.judgement.verdicts}
    for arm, count in found.needs.items():
        most = "more than 1000 seeds, or other validation texts" if count is None else f"about {count} seeds"
        yield f"{arm} has no verdict after {seeds[arm]} seeds: {most} would decide an effect of this size"


def foretold(more: Mapping[int, float], unit: str = "") -> str:
    """Formats the smallest detectable effect by number of seeds, in nats or in `unit`."""
    counts = ", ".join(f"{seeds}: {effect:.4f}{unit}" for seeds, effect in more.items())
    return f"smallest effect detected in four of five studies, by number of seeds: {counts}"
