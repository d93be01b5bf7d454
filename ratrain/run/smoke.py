"""Smoke runs of a manifest in a temporary folder: train, evaluate, save, sample and resume."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ratrain.config.read import Source
from ratrain.config.schema import Manifest
from ratrain.engine.engine import Engine
from ratrain.errors import DivergedError
from ratrain.events import Activated, Evaluated, Event, RunEnded, Window
from ratrain.machine.device import pick_device, set_determinism
from ratrain.run.dry_run import require_equal, two_steps
from ratrain.run.launch import train
from ratrain.run.start import Launch
from ratrain.storage.folder import listed


@dataclass(frozen=True)
class Smoked:
    """The result of a smoke run; losses in nats per token, time in seconds."""

    id: str
    steps: int
    first_loss: float
    validation_loss: float
    recompiles: int
    activated: dict[str, int]  # the step after which each patch was switched on
    seconds: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def smoke(manifest: Manifest, source: Source, *, device: str) -> Smoked:
    """Trains the manifest to the end of its budget.

    Raises RatrainError as the run would, and DivergedError if the validation loss is not lower than the first training
    loss.
    """
    torch._dynamo.reset()  # one process runs many manifests, and dynamo limits the graphs per function
    seen: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        train(manifest, source, Launch(Path(folder), device), sink=seen.append)
    windows = [event for event in seen if isinstance(event, Window)]
    evaluated = [event.loss for event in seen if isinstance(event, Evaluated)]
    smoked = Smoked(
        id=manifest.id,
        steps=windows[-1].step,
        first_loss=windows[0].losses[0],
        validation_loss=evaluated[-1],
        recompiles=windows[-1].recompiles,
        activated={event.patch: event.step for event in seen if isinstance(event, Activated)},
        seconds=sum(sum(event.seconds.values()) for event in seen if isinstance(event, RunEnded)),
    )
    if not math.isfinite(smoked.validation_loss) or smoked.validation_loss >= smoked.first_loss:
        raise DivergedError(
            f"{manifest.id}: validation loss {smoked.validation_loss:.4f} after {smoked.steps} steps, "
            f"no lower than the first training loss {smoked.first_loss:.4f}"
        )
    return smoked


HEAD = ("id", "steps", "first loss", "val loss", "recompiles", "switched on after", "seconds")


def row(smoked: Smoked) -> tuple[str, ...]:
    """Returns the cells of one line under HEAD."""
    activated: Iterable[str] = (f"{patch} {step}" for patch, step in smoked.activated.items() if step)
    numbers = (f"{smoked.steps:,}", f"{smoked.first_loss:.4f}", f"{smoked.validation_loss:.4f}")
    return smoked.id, *numbers, str(smoked.recompiles), ", ".join(activated) or "-", f"{smoked.seconds:.1f}"


@dataclass(frozen=True)
class Resumed:
    """The result of two steps with a restart in between that changed nothing; losses in nats per token."""

    id: str
    losses: tuple[float, ...]  # with every mechanism off, and with all of them on
    activated: tuple[str, ...]
    seconds: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def resume_once(manifest: Manifest, *, device: str) -> Resumed:
    """Trains two steps in one run, and again with a restart after the first, at which every mechanism is switched on.

    Raises RatrainError as a run would, and DivergedError if the two runs do not end with equal weights and state.
    """
    torch._dynamo.reset()
    begun, seen, place = time.perf_counter(), list[Event](), pick_device(device)
    set_determinism(manifest.train.deterministic, place)
    with tempfile.TemporaryDirectory() as folder:
        whole, parted = Path(folder, "whole"), Path(folder, "parted")
        engine = Engine(two_steps(manifest), checkpoints=whole, device=place, emit=seen.append)
        engine.run()
        first = listed(whole)[-1]
        shutil.copytree(first, parted / first.name)
        resumed = Engine(two_steps(manifest), checkpoints=parted, device=place, emit=lambda event: None)
        resumed.run()
        try:
            require_equal(engine, resumed)
        except AssertionError as error:
            raise DivergedError(f"{manifest.id}: a resumed run differs from an uninterrupted one: {error}") from error
    return Resumed(
        id=manifest.id,
        losses=tuple(loss for event in seen if isinstance(event, Window) for loss in event.losses),
        activated=tuple(event.patch for event in seen if isinstance(event, Activated)),
        seconds=time.perf_counter() - begun,
    )


RESUMED_HEAD = ("id", "loss, all off", "loss, all on", "switched on", "resumed", "seconds")


def resumed_row(resumed: Resumed) -> tuple[str, ...]:
    """Returns the cells of one line under RESUMED_HEAD."""
    losses = (f"{loss:.4f}" for loss in resumed.losses)
    return resumed.id, *losses, ", ".join(resumed.activated) or "-", "bit for bit", f"{resumed.seconds:.1f}"
