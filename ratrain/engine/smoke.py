"""A whole run of a manifest in a folder that is thrown away: does it train, evaluate, save and sample?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ratrain.config.read import Source
from ratrain.config.schema import Manifest
from ratrain.engine.launch import Launch, train
from ratrain.errors import DivergedError
from ratrain.events import Activated, Evaluated, Event, RunEnded, Window


@dataclass(frozen=True)
class Smoked:
    """What a run came to; losses in nats per token, time in seconds."""

    id: str
    steps: int
    first_loss: float
    validation_loss: float
    recompiles: int
    activated: dict[str, int]  # after which step each patch was switched on
    seconds: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def smoke(manifest: Manifest, source: Source, *, device: str) -> Smoked:
    """Trains the manifest to the end of its budget. Raises RatrainError as the run would, and DivergedError where the
    validation loss is no lower than the first training loss."""
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
    """One line of the table under HEAD."""
    activated: Iterable[str] = (f"{patch} {step}" for patch, step in smoked.activated.items() if step)
    numbers = (f"{smoked.steps:,}", f"{smoked.first_loss:.4f}", f"{smoked.validation_loss:.4f}")
    return smoked.id, *numbers, str(smoked.recompiles), ", ".join(activated) or "-", f"{smoked.seconds:.1f}"
