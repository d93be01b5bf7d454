"""From a resolved manifest to a finished run: its folder, its sinks, its exit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ratrain.config.identity import run_folder
from ratrain.config.read import Source
from ratrain.config.render import render
from ratrain.config.schema import Manifest
from ratrain.engine.checkpoint import listed
from ratrain.engine.compile import keep_compiled_code
from ratrain.engine.device import environment, pick_device
from ratrain.engine.engine import Engine
from ratrain.engine.folder import RunFolder
from ratrain.errors import MemoryShortError, MissingError, RatrainError, UnavailableError, UsageError
from ratrain.events import Emit, Event, RunEnded, Sampled, Window
from ratrain.registry import plugin_files
from ratrain.sinks.fanout import Fanout
from ratrain.sinks.jsonl import Jsonl
from ratrain.sinks.monitor import Monitor
from ratrain.sinks.progress import Lines

_HEARTBEAT = 5.0  # seconds between notes of the position in state.json


@dataclass(frozen=True)
class Launch:
    """Where and how a manifest is run; none of it decides what is trained."""

    out: Path = Path("runs")
    device: str = "auto"
    resume: str = "auto"  # auto, must, never
    fresh: bool = False


def train(manifest: Manifest, source: Source, launch: Launch, *, sink: Emit) -> Path:
    """Runs the manifest, or goes on where it stopped; returns the run's folder.

    `sink` is what the user sees. A finished run is left as it is. Raises RatrainError with the exit code to give.
    """
    device = pick_device(launch.device)
    folder = RunFolder(launch.out / run_folder(manifest))
    with folder.open():
        if launch.fresh and (folder.path / "resolved.toml").exists():
            folder.move_aside()
    with folder.open():
        _check_resume(folder, launch.resume)
        if folder.read_state().get("status") == "done":
            raise AlreadyDone(folder.path, folder.read_state().get("loss"))
        folder.write("manifest.toml", source.files[-1].read_text())
        folder.write("resolved.toml", render(manifest, source))
        for file in plugin_files(manifest.patch.values()):
            folder.write(f"patches/{file.name}", file.read_text())  # so that the folder is runnable by itself
        folder.write("env.json", json.dumps(environment(device), indent=1) + "\n")
        folder.write_state(status="running")
        with _sinks(folder, device, sink) as emit, _failures_told(folder, manifest):
            keep_compiled_code()
            Engine(manifest, checkpoints=folder.checkpoints, device=device, emit=emit).run()
    return folder.path


class AlreadyDone(Exception):  # noqa: N818 - not an error: there is nothing left to do
    """The run in `path` had reached the end of its budget with validation loss `loss`."""

    def __init__(self, path: Path, loss: float | None):
        super().__init__(f"{path}: this run is done" + ("" if loss is None else f" (validation loss {loss:.4f})"))
        self.path, self.loss = path, loss


def _check_resume(folder: RunFolder, resume: str) -> None:
    found = listed(folder.checkpoints)
    if resume == "must" and not found:
        raise MissingError(f"{folder.checkpoints}: --resume must, but there is no checkpoint")
    if resume == "never" and found:
        raise UsageError(f"{folder.path}: --resume never, but it holds checkpoints; --fresh moves them aside")


@contextmanager
def _sinks(folder: RunFolder, device: torch.device, sink: Emit) -> Iterator[Emit]:
    fanout = Fanout()
    with (folder.path / "log.txt").open("a") as log:
        fanout.add(Jsonl(folder.path / "events.jsonl"), essential=True)
        fanout.add(_State(folder), essential=True)
        fanout.add(Lines(log, stamped=True))
        fanout.add(sink)
        fanout.add(Monitor(fanout, gpu=device.index or 0))
        try:
            yield fanout
        finally:
            fanout.close()


class _State:
    """Keeps state.json and the samples folder up to date."""

    def __init__(self, folder: RunFolder):
        self._folder, self._due = folder, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Window):
            if time.monotonic() < self._due:  # each write waits for the disk: not for every window
                return
            self._due = time.monotonic() + _HEARTBEAT
            self._folder.write_state(status="running", step=event.step, spent=event.spent)
        elif isinstance(event, RunEnded):
            self._folder.write_state(status=event.status, step=event.step, loss=event.loss)
        elif isinstance(event, Sampled):
            self._folder.write(f"samples/step-{event.step:08d}.txt", event.text)


@contextmanager
def _failures_told(folder: RunFolder, manifest: Manifest) -> Iterator[None]:
    """Turns what a machine can lack into one message, and leaves the reason in state.json."""
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, RatrainError) else _machine_failure(error, manifest)
        known = folder.read_state()
        if known.get("status") == "running":
            folder.write_state(**{**known, "status": "failed", "reason": str(told or repr(error))})
        if told is error or told is None:
            raise
        raise told from error


def _machine_failure(error: Exception, manifest: Manifest) -> RatrainError | None:
    """What the machine lacked; None where the error is a bug."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        micro = manifest.train.micro_batch
        return MemoryShortError(
            f"out of memory at train.micro_batch = {micro}; "
            f"--set train.micro_batch={max(1, micro // 2)} gives the same gradients in less"
        )
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return UnavailableError(
            "torch.compile found no C++ compiler; install g++ or clang, or run slower with --set compile.backend=eager"
        )
    return None
