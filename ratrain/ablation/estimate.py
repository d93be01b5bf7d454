"""Estimates the wall time and disk of a study from a dozen steps of its baseline on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ratrain.ablation.arms import Task
from ratrain.ablation.plan import Plan
from ratrain.config.resolve import steps_total, tokens_per_step
from ratrain.config.schema import Budget, Manifest
from ratrain.events import Evaluated, Event, Saved, Window
from ratrain.run.launch import train
from ratrain.run.start import Launch

_STEPS = 12
_WEIGHTS = 1 / 3  # share of a checkpoint; the rest is two moments per weight


@dataclass(frozen=True)
class Probe:
    """Measurements of the baseline: `start` seconds outside of training and evaluation (building, compiling, saving, a
    sample), `evaluation` seconds of an evaluation, `rate` tokens/s of training, `checkpoint` bytes."""

    start: float
    evaluation: float
    rate: float
    checkpoint: int


def probe(plan: Plan, *, device: str) -> Probe:
    """Trains the baseline for 12 steps in a temporary folder and returns the measurements."""
    seen: list[Event] = []
    manifest = _short(plan.base.manifest)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train(manifest, plan.base.source_of(*plan.seeds[0]), Launch(Path(folder), device), sink=seen.append)
    took = time.monotonic() - began
    rate = max(event.tokens_per_second for event in seen if isinstance(event, Window))
    trained = _STEPS * tokens_per_step(manifest) / rate
    evaluation = max(event.seconds for event in seen if isinstance(event, Evaluated))
    size = max(event.bytes for event in seen if isinstance(event, Saved))
    return Probe(max(0.0, took - trained - evaluation), evaluation, rate, size)


def _short(manifest: Manifest) -> Manifest:
    sections = {
        "train": {"budget": Budget(steps=_STEPS)},
        "log": {"every": _STEPS // 3, "trackers": ()},
        "eval": {"every": _STEPS},
    }
    return manifest.model_copy(
        update={name: getattr(manifest, name).model_copy(update=keys) for name, keys in sections.items()}
    )


@dataclass(frozen=True)
class Estimate:
    """Wall time of the remaining runs, `lanes` at a time, and the disk space that they need."""

    runs: int
    lanes: int
    seconds: float
    disk: int
    rate: float


def estimate(plan: Plan, left: Iterable[Task], found: Probe, *, lanes: int) -> Estimate:
    """Estimates the remaining runs; the time per token of an arm scales with its training FLOPs per token."""
    arms = {arm.name: arm for arm in plan.arms}
    tasks, seconds, disk = list(left), 0.0, 0
    for task in tasks:
        arm = arms[task.arm]
        factor = arm.built.train_flops_per_token / plan.base.built.train_flops_per_token
        trained = _train_seconds(arm.manifest, found.rate / factor)
        seconds += found.start + trained + _evaluations(arm.manifest) * found.evaluation
        size = arm.built.parameters / plan.base.built.parameters
        kept = _WEIGHTS if task.thin else arm.manifest.checkpoint.keep
        disk += round(found.checkpoint * size * kept)
    return Estimate(len(tasks), lanes, seconds / max(1, min(lanes, len(tasks))), disk, found.rate)


def _evaluations(manifest: Manifest) -> int:
    """The number of evaluations in a run, the last one at its end."""
    steps, every = steps_total(manifest), manifest.eval.every
    return 1 if steps is None or not every else max(1, -(-steps // every))


def _train_seconds(manifest: Manifest, rate: float) -> float:
    """Training seconds by the budget: its steps at `rate` tokens/s, or its own seconds."""
    steps = steps_total(manifest)
    if steps is None:
        return float(manifest.train.budget.seconds or 0.0)
    return steps * tokens_per_step(manifest) / rate
