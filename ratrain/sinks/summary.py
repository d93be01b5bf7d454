"""Writes summary.json when the run ends: its identity and results, for scripts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ratrain.events import Event, PruningEvaluated, RunEnded, RunStarted, Window


class Summary:
    """Collects the summary from the events of a session; `write` receives the JSON text."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self._facts: dict[str, Any] = {}
        self._rates: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            names = ("id", "title", "scale", "recipe_hash", "run_hash", "seed_init", "seed_data", "parameters")
            self._facts = {name: getattr(event, name) for name in names}
        elif isinstance(event, Window):
            self._rates.append(event.tokens_per_second)
            self._facts |= {"tokens": event.tokens, "peak_memory": event.peak_memory}
        elif isinstance(event, PruningEvaluated):
            self._facts["pruning"] = asdict(event)
        elif isinstance(event, RunEnded):
            rate = statistics.median(self._rates) if self._rates else None
            loss = event.loss if event.loss is not None and math.isfinite(event.loss) else None  # JSON has no NaN
            ended = {"status": event.status, "steps": event.step, "validation_loss": loss}
            ended |= {"windows": event.windows} if event.windows else {}
            self._facts |= ended | {"tokens_per_second": rate, "seconds": event.seconds}
            self._write(json.dumps(self._facts, indent=1) + "\n")
