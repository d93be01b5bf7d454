"""Formats a profile as text for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ratrain.profile.roofline import CACHE, MASKED, Priced
from ratrain.profile.rows import GAPS, PHASES

_SHOWN, _GAPS = 20, 5  # rows of operations, of gaps; the rest of a phase becomes one row
_SPARE = 0.2  # CPUs that an idle machine uses
_NAME = 51
_HEAD = ("calls", "ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s", "roof", "bound")
_WIDTHS = (6, 8, 6, 7, 7, 7, 6, 6, 7)


def sentence(far: Sequence[Priced], total: float) -> str:
    """Names the rows with the largest and the second largest distance to the roof."""
    if not far:
        return "nothing to gain: every row whose roof is known stands at it"
    parts = []
    for it in far[:2]:
        row = it.row
        where = "" if row.phase == GAPS else f" ({row.phase}, at {it.percent or 0:.0f} % of the {it.bound} roof)"
        parts.append(f"{1e3 * it.gain:.3g} ms, {100 * it.gain / total:.1f} % of the step: {row.name}{where}")
    return "most to gain: " + "; then ".join(parts)


def table(told: Mapping[str, Any]) -> str:
    """Formats a profile's record: title, table and notes."""
    total = told["step"]["seconds"]
    lines = [_title(told), "", f"{'':{_NAME}} " + _cells(_HEAD)]
    kept = sorted((row for row in told["rows"] if row["phase"] != GAPS), key=lambda row: -row["seconds"])
    shown = kept[:_SHOWN]
    for phase in PHASES:
        of_phase = [row for row in told["rows"] if row["phase"] == phase]
        if not of_phase:
            continue
        lines.append(f"{phase:{_NAME}} " + _cells(["", *_time(sum(row["seconds"] for row in of_phase), total)]))
        ranked = sorted(of_phase, key=lambda row: -row["seconds"])
        listed = ranked[:_GAPS] if phase == GAPS else [row for row in ranked if row in shown]
        left = [row for row in ranked if row not in listed]
        lines += [_line(row, total) for row in listed]
        if left:
            lines.append(_line(left[0] if len(left) == 1 else _other(left), total))
    lines.append(f"{'step':{_NAME}} " + _cells(["", *_time(total, total)]))
    return "\n".join([*lines, "", *_notes(told)])


def _title(told: Mapping[str, Any]) -> str:
    roof, env = told["roof"], told["environment"]
    where = env["device"] if env["device"] != "cpu" else f"{env['cpu']}, {env['threads']} thread(s)"
    return (
        f"{told['id']} at scale {told['scale']}, batch {told['batch'][0]} x {told['batch'][1]}, {told['precision']}, "
        f"{told['steps']} steps on {where}\n"
        f"roof: {roof['flops'] / 1e9:,.1f} GFLOP/s of products, {roof['bandwidth'] / 1e9:,.1f} GB/s of memory, "
        "measured here and now"
        + (f"\n      (the former by {roof['product']}; torch.mm reached {roof['measured_flops'] / 1e9:,.1f})"
           if roof["product"] else "")
    )  # fmt: skip


def _other(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums small rows into one. Its roof is that of the rows with a known roof, if they take most of the time."""
    seconds = sum(row["seconds"] for row in rows)
    known = [row for row in rows if row["percent"] is not None]
    allowed, took = (
        sum(min(row["allowed_seconds"], row["seconds"]) for row in known),
        sum(row["seconds"] for row in known),
    )
    return {
        "phase": rows[0]["phase"],
        "name": f"other ({len(rows)})",
        "calls": 0,
        "seconds": seconds,
        "flops": sum(row["flops"] or 0 for row in rows),
        "bytes": None if any(row["bytes"] is None for row in rows) else sum(row["bytes"] for row in rows),
        "percent": 100 * allowed / took if took > seconds / 2 else None,
        "bound": "",
    }


def _line(row: Mapping[str, Any], total: float) -> str:
    seconds, flops, moved = row["seconds"], row["flops"], row["bytes"]
    rates = [None if not amount or seconds <= 0 else amount / seconds / 1e9 for amount in (flops, moved)]
    percent = row["percent"]
    cells = [
        f"{row['calls']:.4g}" if row["calls"] else "",
        *_time(seconds, total),
        _number(flops and flops / 1e9),
        _number(None if moved is None else moved / 1e6) if row.get("phase") != GAPS else "-",
        *(_number(rate) for rate in rates),
        "-" if percent is None else ">100 %" if percent > 100 else f"{percent:.0f} %",
        row["bound"] or "-",
    ]
    return f"{'  ' + _cut(row['name'], _NAME - 2):{_NAME}} " + _cells(cells)


def _time(seconds: float, total: float) -> tuple[str, str]:
    return f"{1e3 * seconds:.3f}", f"{100 * seconds / total:.1f} %"


def _number(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 0.01 else "<0.01"


def _cells(cells: Sequence[str]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=False)).rstrip()


def _cut(text: str, width: int) -> str:
    """Shortens a name in the middle, since the end of a kernel's name is its number."""
    return text if len(text) <= width else f"{text[: width - 13]}…{text[-12:]}"


def _notes(told: Mapping[str, Any]) -> list[str]:
    step, flops, memory = told["step"], told["flops"], told["memory"]
    mfu = ", ".join(f"{100 * value:.1f} % of the {name} peak" for name, value in step["mfu"].items())
    split = memory["split"]
    again = f"; {flops['attention'] / 1e9:.3g} G in fused attention, which forms its scores again to go back"
    notes = [
        f"step    {1e3 * step['unprofiled_seconds']:.1f} ms without the profiler (median), "
        f"{1e3 * step['seconds']:.1f} ms with it (the table), of which {1e3 * step['best_seconds']:.1f} ms at the roof",
        f"speed   {step['tokens_per_second']:,.0f} tokens/s; MFU {mfu}",
        f"FLOPs   {flops['counted'] / 1e9:.4g} G in products, {flops['counted'] / flops['analytic']:.3f} times the "
        f"model's own {flops['analytic'] / 1e9:.4g} G{again if flops['attention'] else ''}",
        f"memory  {_size(memory['peak_bytes'])} at the peak ({memory['peak_phase']}): "
        f"parameters {_size(split['parameters'])}, gradients {_size(split['gradients'])}, "
        f"optimizer {_size(split['optimizer_state'])}, activations and rest {_size(split['activations_and_rest'])}",
    ]
    if gpu := told["gpu"]:
        waits = ", ".join(f"{name} {number:.3g}" for name, number in gpu["syncs"].items()) or "none"
        idle = f"GPU     idle {100 * gpu['idle_share']:.1f} % of the step"
        notes.append(f"{idle}; {gpu['kernels']:.0f} kernels; waits: {waits}")
    if not gpu and step["busy_others"] + told["environment"]["threads"] > step["cpus"] + _SPARE:
        kept = f"busy    other work kept {step['busy_others']:.1f} of this machine's {step['cpus']} CPUs busy"
        notes.append(f"{kept}: it is in every number above")
    bounds = {row["bound"] for row in told["rows"]}
    if CACHE in bounds:
        notes.append("cache   faster than memory allows: the arrays came from a cache")
    if MASKED in bounds:
        notes.append("masked  faster than the roof: causal attention skips some of the counted FLOPs")
    if told["compiled"] and not told["kernels_told"]:
        notes.append("fused   this torch does not report the bytes of its fused kernels: their roof is unknown")
    notes.append(told["most_to_gain"])
    return [line for note in notes for line in textwrap.wrap(note, 120, subsequent_indent=" " * 8)]


def _size(size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
