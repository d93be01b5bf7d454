"""Profiles a manifest's step and builds the record that the table is printed from."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ratrain.config.schema import Manifest
from ratrain.machine.device import environment, memory_bandwidth, peak_flops
from ratrain.model.count import count
from ratrain.profile import folder as files
from ratrain.profile import memory
from ratrain.profile.record import Recording, record, syncs
from ratrain.profile.roofline import Priced, Roof, furthest, price
from ratrain.profile.rows import CLIP, DATA, GAPS, Row, Work, marked, rows, split, window, works
from ratrain.profile.table import sentence, table
from ratrain.profile.trace import Op, read
from ratrain.run.launch import machine_told


def profile_step(
    manifest: Manifest, device: torch.device, *, steps: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Profiles `steps` steps and writes the results into `folder`; returns the content of profile.json.

    Raises RatrainError if the folder cannot be written, or the machine lacks a resource that the step needs.
    """
    with files.claimed(folder), machine_told(manifest):
        say("measuring the roofline")
        peaks = peak_flops(device, manifest.train.precision)
        roof = Roof(peaks["measured"] or 1.0, memory_bandwidth(device))
        seen = record(manifest, device, steps=steps, say=say, snapshot=folder / files.SNAPSHOT)
        root = read(seen.results, device.type)
        told = _told(manifest, device, seen, root, roof=roof, datasheet=peaks["datasheet"])
        at_peak = _memory(seen, root)
        told["memory"] = {name: at_peak[name] for name in ("peak_bytes", "peak_phase", "split")}
        told["files"] = sorted({files.TRACE, files.TABLE, files.MEMORY, *(file.name for file in folder.iterdir())})
        say(f"writing {folder}")
        files.write(folder, told, table=table(told), memory=at_peak, trace=seen.profiler)
    return told


def _told(
    manifest: Manifest, device: torch.device, seen: Recording, root: Op, *, roof: Roof, datasheet: float | None
) -> dict[str, Any]:
    on_gpu, marks, around = device.type == "cuda", marked(root), window(root)
    total = (around.stop - around.start) / seen.steps  # ns
    # on a GPU the backward pass runs in a separate thread, and times are those of the device
    everything = works(root, marks) if on_gpu else split(around, marks)
    found = [work for work in everything if around.start <= work.op.start < around.stop]
    made = rows(found, steps=seen.steps, figures=seen.figures, total=round(total), on_gpu=on_gpu)
    lifted = roof.lifted(made)
    priced = [price(row, lifted) for row in made]
    cost, tokens = count(seen.model), manifest.train.batch * manifest.model.block_size
    unprofiled = statistics.median(seen.unprofiled)
    rate = cost.train_flops_per_token * tokens / unprofiled
    peaks = {"measured": lifted.flops, "datasheet": datasheet}
    return {
        "kind": files.KIND,
        "id": manifest.id,
        "scale": manifest.scale,
        "precision": manifest.train.precision,
        "batch": [manifest.train.batch, manifest.model.block_size],
        "steps": seen.steps,
        "compiled": seen.compiled,
        "kernels_told": len(seen.figures),
        "roof": {**asdict(lifted), "measured_flops": roof.flops},
        "step": {
            "seconds": total / 1e9,
            "unprofiled_seconds": unprofiled,
            "best_seconds": sum(it.best for it in priced),
            "busy_others": seen.others,
            "cpus": os.cpu_count(),
            "tokens": tokens,
            "tokens_per_second": tokens / unprofiled,
            "mfu": {name: rate / peak for name, peak in peaks.items() if peak},
        },
        "flops": {
            "counted": sum(row.flops or 0 for row in made),
            "attention": sum(row.flops or 0 for row in made if row.is_attention),
            "analytic": cost.train_flops_per_token * tokens,
        },
        "gpu": _gpu(found, made, seen, total / 1e9) if on_gpu else None,
        "rows": [_entry(it) for it in priced],
        "most_to_gain": sentence(furthest(priced), total / 1e9),
        "environment": environment(device),
    }


def _entry(priced: Priced) -> dict[str, Any]:
    return {**asdict(priced.row), "allowed_seconds": priced.allowed, "percent": priced.percent, "bound": priced.bound}


def _gpu(found: Sequence[Work], made: Sequence[Row], seen: Recording, total: float) -> dict[str, Any]:
    """Returns the idle share of the GPU in a step, and the waits of the CPU for it and the started kernels per step."""
    idle = sum(row.seconds for row in made if row.phase == GAPS)
    kernels = sum(1 for work in found for part in work.op.walk() for _ in part.spans)
    return {"idle_share": idle / total, "kernels": kernels / seen.steps, "syncs": syncs(seen)}


def _memory(seen: Recording, root: Op) -> dict[str, Any]:
    """Returns the memory at the peak of the last step, from its batch on."""
    marks = marked(root)
    around = window(root)
    clip = max((span for span in marks.spans if span.name == CLIP), key=lambda span: span.start)
    begun = [span.start for span in marks.spans if span.name == DATA and span.start < clip.start]
    owners = memory.Owners(works(root, marks), marks)
    return memory.at_peak(
        memory.lives(memory.all_allocs(root)), max(begun), around.stop,
        held=seen.held, gradients=seen.gradients, clipped=clip.start, owners=owners,
    )  # fmt: skip
