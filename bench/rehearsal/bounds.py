"""The recorded launches and bytes of a step of each case: more of either is a fault."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.rehearsal.step import Rehearsed

FILE = Path(__file__).with_name("bounds.json")
_SLACK = 1.005  # of bytes: Inductor's split of a reduction may change with the number of processors


def read() -> dict[str, Any]:
    """Reads the cases by name, each with launches and bytes; empty for another torch, which fuses differently."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    return known.get("cases", {}) if known.get("torch") == _torch() else {}


def exceeded(step: Rehearsed, known: dict[str, Any]) -> list[str]:
    """Describes launches or bytes of a step above the bound of its case."""
    bound = known.get(str(step.case))
    if bound is None:
        return []
    found = []
    if step.launches > bound["launches"]:
        found.append(f"{step.launches} launches, {bound['launches']} when they were recorded")
    if step.bytes > _SLACK * bound["bytes"]:
        found.append(f"{step.bytes / 1e9:.3f} GB, {bound['bytes'] / 1e9:.3f} when they were recorded")
    return [f"{line}; python -m bench.rehearsal --record takes the new figures" for line in found]


def write(row: dict[str, Any]) -> None:
    """Records the figures of a case; other cases are unchanged."""
    fresh = {row["case"]: {"launches": row["launches"], "bytes": row["bytes"]}}
    cases = dict(sorted({**read(), **fresh}.items()))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(bound)}" for name, bound in cases.items())
    FILE.write_text(f'{{\n "torch": "{_torch()}",\n "cases": {{\n{lines}\n }}\n}}\n')


def _torch() -> str:
    return version("torch").partition("+")[0]
