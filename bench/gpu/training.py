"""Runs of the first minutes on a GPU: they must learn, and tell how far paired seeds go together."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.manifests import manifest_of
from ratrain.config.schema import Manifest
from ratrain.engine.engine import Engine
from ratrain.events import Event, Window

Row = dict[str, Any]


def train(small: bool) -> Iterator[Row]:
    """The same run on the GPU in bf16 and on the CPU in fp32: the loss must fall, and the two stay near each other."""
    count, curves = (20, {}) if small else (300, {})
    for name, device, precision in (
        ("GPU", "cpu" if small else "cuda", "fp32" if small else "bf16"),
        ("CPU", "cpu", "fp32"),
    ):
        keys = (f"train.budget.steps={count}", f"train.precision={precision}", "compile.scope=off", "log.every=10")
        begin, windows = time.monotonic(), []
        final = _run(
            manifest_of("v0", scale="tiny" if small else "study_2026_11", overrides=keys), device, windows.append
        )
        curves[name] = [loss for window in windows for loss in window.losses]
        yield {
            "run": name, "device": device, "precision": precision, "steps": len(curves[name]),
            "first": round(curves[name][0], 4), "last": round(final, 4), "seconds": round(time.monotonic() - begin, 1),
        }  # fmt: skip
    apart = [abs(a - b) for a, b in zip(curves["GPU"], curves["CPU"], strict=True)]
    fallen = curves["GPU"][0] - curves["GPU"][-1]
    # bf16 keeps 8 bits of each factor: a loss of 7 is known to 0.03, and training is stable at this learning rate
    row: Row = {"largest_gap": round(max(apart), 4), "mean_gap": round(statistics.mean(apart), 5)}
    row["fallen"] = round(fallen, 3)
    good = max(apart) < 0.1 and fallen > (0.02 if small else 1.0)
    yield row if good else {**row, "why": "the GPU's run does not learn, or is not the CPU's"}


def pairs(small: bool) -> Iterator[Row]:
    """Final losses of v0, v1 and aa_ulp over paired seeds, and r, the correlation of the arms over seeds."""
    arms, seeds = ("v0", "v1", "aa_ulp"), (1, 2, 3)
    device, losses = "cpu" if small else "cuda", {arm: [] for arm in arms}
    keys = ("train.budget.steps=10",) if small else ("train.budget.steps=250", "train.precision=bf16")
    for seed in seeds:
        for arm in arms:
            found = (*keys, "compile.scope=off", f"seed.init={seed}", f"seed.data={seed}")
            manifest = manifest_of(arm, scale="tiny" if small else "study_2026_11", overrides=found)
            losses[arm].append(_run(manifest, device, lambda window: None))
            yield {"arm": arm, "seed": seed, "loss": round(losses[arm][-1], 5)}
    for arm in arms[1:]:
        apart = [a - b for a, b in zip(losses[arm], losses["v0"], strict=True)]
        r = statistics.correlation(losses[arm], losses["v0"])
        yield {"arm": arm, "r": round(r, 4), "mean_difference": round(statistics.mean(apart), 5),
               "sd_of_differences": round(statistics.stdev(apart), 5)}  # fmt: skip


def _run(manifest: Manifest, device: str, seen: Callable[[Window], None]) -> float:
    """Returns the validation loss at the end of a run, which leaves no files."""

    def emit(event: Event) -> None:
        if isinstance(event, Window):
            seen(event)

    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(manifest, checkpoints=Path(folder), device=torch.device(device), emit=emit)
        loss = engine.run().loss
    assert loss is not None
    return loss
