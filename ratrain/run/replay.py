"""Repeats a few steps of a run, from a checkpoint or from the start, and compares them with its log.

A replay verifies a study for a fraction of its cost.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ratrain.checksum import sha256_of
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.errors import MissingError, PreemptedError, UsageError
from ratrain.event_log import read_events
from ratrain.events import Event, Saved, Window
from ratrain.machine.device import environment, pick_device
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.launch import train
from ratrain.run.start import Launch, changed_code
from ratrain.storage.folder import RunFolder, listed
from ratrain.storage.run_log import steps_of

TOLERANCE = 2e-3  # relative, of a loss on another kind of machine: growth of rounding over a few hundred steps
_KIND = ("torch", "cpu", "threads", "device")  # facts that must match for bit-identical results


@dataclass(frozen=True)
class Replayed:
    """The comparison of the steps after `begin`, up to `end`, with the log."""

    run: str
    begin: int
    end: int
    equal: int  # number of bit-identical losses
    compared: int
    largest: float  # largest relative difference of a loss
    weights: dict[int, bool]  # by step, whether a checkpoint's weights are bit-identical
    unlike: tuple[str, ...]  # differences of machine, torch, threads and sources

    @property
    def exact(self) -> bool:
        return self.compared > 0 and self.equal == self.compared and all(self.weights.values())

    @property
    def holds(self) -> bool:
        """Whether the log is confirmed: to the bit, or within TOLERANCE if machine or sources differ."""
        return self.exact or (bool(self.unlike) and self.compared > 0 and self.largest <= TOLERANCE)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact, "holds": self.holds}


def replay(run: Path, *, begin: int, steps: int, device: str) -> Replayed:
    """Trains `steps` steps from step `begin` of a run in a temporary folder, and compares losses and weights.

    Raises MissingError if the run has no complete checkpoint of that step, UsageError for a branched run.
    """
    if (run / "parent.json").exists():
        raise UsageError(f"{run}: branches from another run; replay needs a run that starts at step 0")
    source = read_source(run / "resolved.toml")
    manifest = resolve(source, patches=patch_kinds(beside=source.files), optimizers=optim_kinds())
    alone = manifest.parallel.model_copy(update={"strategy": "auto", "replicas": 1})
    manifest = manifest.model_copy(update={"parallel": alone})
    logged = _losses(_events(run / "events.jsonl"))
    before = json.loads((run / "env.json").read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(int(before.get("threads", threads)))
    seen: list[Event] = []

    try:
        now = environment(pick_device(device))
        with tempfile.TemporaryDirectory() as folder:
            launch = Launch(Path(folder), device)
            place = launch.folder(manifest)
            _begin_at(begin, run, place)
            with contextlib.suppress(PreemptedError):  # raised when `until` is reached before the end of the budget
                train(manifest, source, launch, sink=seen.append, until=begin + steps)
            weights = dict(_compared(run, place.checkpoints, begin))
    finally:
        torch.set_num_threads(threads)
    unlike = [f"{key} {before.get(key)} -> {now.get(key)}" for key in _KIND if before.get(key) != now.get(key)]
    unlike += [f"{name} has changed" for name in changed_code(RunFolder(run), manifest)]
    return _beside(str(run), begin, logged, _losses(seen), weights, tuple(unlike))


def _begin_at(step: int, run: Path, place: RunFolder) -> None:
    if not step:
        return
    whole = [path for path in listed(run / "checkpoints") if (path / "optimizer.safetensors").exists()]
    there = {int(path.name[5:]): path for path in whole}
    if step not in there:
        known = ", ".join(map(str, sorted(there))) or "none"
        raise MissingError(f"{run}: has no whole checkpoint of step {step}; it has {known}, and 0 is the start")
    shutil.copytree(there[step], place.checkpoints / there[step].name)


def _events(file: Path) -> list[Event]:
    try:
        return list(read_events(file))
    except OSError as error:
        raise MissingError(f"{file}: cannot be read: {error.strerror}") from error


def _losses(events: Sequence[Event]) -> dict[int, float]:
    """Returns the losses by step; the last one for a step repeated after a resume."""
    windows = [event for event in events if isinstance(event, Window)]
    return dict(zip(steps_of(windows), (loss for window in windows for loss in window.losses), strict=True))


def _compared(run: Path, again: Path, begin: int) -> Iterator[tuple[int, bool]]:
    """Yields (step, equal) for each step whose weights both runs have.

    The replayed weights must match the digest in the run's log, and the checkpoint file if the run still has it.
    """
    stated = {event.step: event.weights for event in _events(run / "events.jsonl") if isinstance(event, Saved)}
    # the files of a model that FSDP divided depend on the number of processes
    whole = [path for path in listed(run / "checkpoints") if not any(path.glob("model-*"))]
    kept = {int(path.name[5:]): path for path in whole}
    for path in reversed(listed(again)):
        step = int(path.name[5:])
        if step <= begin or not (step in kept or stated.get(step)):
            continue
        digest = sha256_of([path / "model.safetensors"])
        known = [stated[step]] if stated.get(step) else []
        known += [sha256_of([kept[step] / "model.safetensors"])] if step in kept else []
        yield step, set(known) == {digest}


def _beside(
    run: str, begin: int, logged: dict[int, float], again: dict[int, float], weights: dict[int, bool],
    unlike: tuple[str, ...],
) -> Replayed:  # fmt: skip
    both = [(logged[step], again[step]) for step in sorted(again) if step in logged and step > begin]
    largest = max((abs(a - b) / max(abs(a), 1e-9) for a, b in both), default=0.0)
    equal = sum(a == b for a, b in both)
    return Replayed(run, begin, max(again, default=begin), equal, len(both), largest, weights, unlike)
