"""Runs a resolved manifest: creates its folder and sinks, trains, and reports failures."""

from __future__ import annotations

import json
import re
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.exc import TorchDynamoException

from ratrain.config.read import Source
from ratrain.config.render import render
from ratrain.config.schema import Manifest
from ratrain.engine.engine import Engine
from ratrain.engine.strategy import arranged
from ratrain.errors import (
    CannotCreateError,
    DiskError,
    DivergedError,
    Exit,
    Fault,
    ManifestError,
    MemoryShortError,
    PreemptedError,
    RatrainError,
    UnavailableError,
)
from ratrain.events import Emit, Event, Notice, RunEnded, Sampled, Window
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import environment, gpu_uuid, pick_device
from ratrain.machine.distributed import FollowedError, World, join
from ratrain.registry import run_files
from ratrain.run.start import Launch, may_start
from ratrain.sinks.fanout import Fanout
from ratrain.sinks.jsonl import Jsonl
from ratrain.sinks.monitor import Monitor
from ratrain.sinks.progress import Lines
from ratrain.sinks.starved import Starved
from ratrain.sinks.summary import Summary
from ratrain.sinks.trackers import require, trackers
from ratrain.storage.branch import Branch
from ratrain.storage.checkpoint import check_room
from ratrain.storage.code_digests import code_digests, some
from ratrain.storage.folder import RunFolder

_HEARTBEAT = 5.0  # seconds between updates of state.json


def train(
    manifest: Manifest,
    source: Source,
    launch: Launch,
    *,
    sink: Emit,
    engine: type[Engine] = Engine,
    until: int | None = None,
) -> Path:
    """Runs the manifest, or resumes its run; returns the run's folder.

    `sink` shows events to the user; `until` is as in `Engine.run`. Raises AlreadyDone for a finished run, which is
    left as it is, and RatrainError with the exit code of the command.
    """
    device = pick_device(launch.device)
    keep_compiled_code()
    folder, emit = launch.folder(manifest), Fanout()
    with join(device) as world:
        _require_alike(world, manifest)
        world = arranged(world, manifest, device)
        changed = world.lead(lambda: _ready(folder, manifest, launch))
        with world.leader_first(), machine_told(manifest):  # a run that cannot start leaves no folder
            run = engine(
                manifest, checkpoints=folder.checkpoints, device=device, emit=emit, world=world, branch=launch.branch
            )
            check_room(folder.checkpoints, run.checkpoint_bytes, keep=manifest.checkpoint.keep)
        if not world.leads:
            _follow(run, manifest, until)
            return folder.path
        with folder.open():
            _describe(folder, manifest, source, device, branch=launch.branch)
            sinks = (sink, *trackers(manifest.log, emit))
            if world.heartbeat:
                world.heartbeat.last_words = partial(_note_loss, folder, emit)
            with _sinks(folder, device, emit, sinks), _failures_noted(folder), machine_told(manifest):
                if changed:
                    emit(Notice(f"continues with changed code: {some(changed)}", "warning"))
                run.run(until=until)
    return folder.path


def _require_alike(world: World, manifest: Manifest) -> None:
    """Raises UnavailableError on rank 0, FollowedError on the others, if one has another torch or other sources."""
    if world.size == 1:
        return
    told = world.gather((socket.gethostname(), torch.__version__, code_digests(manifest)))

    def check() -> None:
        host, version, code = told[0]
        for rank, (other, its_version, its_code) in enumerate(told):
            what = f"torch {its_version}, process 0 on {host} has {version}" if its_version != version else ""
            if not what and its_code != code:
                files = sorted(name for name in code.keys() | its_code.keys() if code.get(name) != its_code.get(name))
                what = f"sources that differ from those of process 0 on {host}: {some(files)}"
            if what:
                raise UnavailableError(f"process {rank} on {other} has {what}; expected the same on every machine")

    world.lead(check)


def _ready(folder: RunFolder, manifest: Manifest, launch: Launch) -> list[str]:
    """Checks that the run may start, after moving an old folder aside if `fresh`; returns the changed source files."""
    require(manifest.log.trackers)
    if launch.fresh and (folder.path / "resolved.toml").exists():
        with folder.open():
            folder.move_aside()
    changed = may_start(folder, manifest, launch)
    folder.check_attempts()
    return changed


def _follow(run: Engine, manifest: Manifest, until: int | None) -> None:
    """Trains on a rank other than 0, without any output. Raises FollowedError for what rank 0 reports as well."""
    try:
        with machine_told(manifest):
            run.run(until=until)
    except (PreemptedError, DivergedError, DiskError, CannotCreateError) as error:
        raise FollowedError(error.exit) from error


def _describe(
    folder: RunFolder, manifest: Manifest, source: Source, device: torch.device, *, branch: Branch | None
) -> None:
    """Writes manifest, plug-ins, code digests, environment and state to the folder, so that it is self-contained."""
    folder.write("manifest.toml", source.files[-1].read_bytes())
    folder.write("resolved.toml", render(manifest, source))
    for name, file in run_files(manifest.patch.values()).items():
        folder.write(name, file.read_bytes())
    folder.write("code.json", json.dumps(code_digests(manifest), indent=1) + "\n")
    folder.write("env.json", json.dumps(environment(device), indent=1) + "\n")
    if branch:
        folder.write("parent.json", json.dumps(branch.record(), indent=1) + "\n")
    folder.count_attempt()
    folder.write_state(status="running")


@contextmanager
def _sinks(folder: RunFolder, device: torch.device, emit: Fanout, sinks: Sequence[Emit]) -> Iterator[None]:
    with (folder.path / "log.txt").open("a", encoding="utf-8") as log:
        emit.add(Jsonl(folder.path / "events.jsonl"), essential=True)
        # before _State marks the run as done: if it is killed in between, the next start runs it to its end again
        emit.add(Summary(lambda text: folder.write("summary.json", text)), essential=True)
        emit.add(_State(folder), essential=True)
        emit.add(Lines(log, stamped=True))
        for sink in sinks:
            emit.add(sink)
        emit.add(Monitor(emit, gpu=gpu_uuid(device)))
        if device.type == "cpu":
            emit.add(Starved(emit))
        try:
            yield
        finally:
            emit.close()


class _State:
    """Keeps state.json and the samples folder up to date."""

    def __init__(self, folder: RunFolder):
        self._folder, self._due = folder, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Window):
            if time.monotonic() < self._due:  # a write waits for the disk, so not at every window
                return
            self._due = time.monotonic() + _HEARTBEAT
            self._folder.write_state(status="running", step=event.step, spent=event.spent)
        elif isinstance(event, RunEnded):
            self._folder.write_state(status=event.status, step=event.step, loss=event.loss)
        elif isinstance(event, Sampled):
            self._folder.write(f"samples/step-{event.step:08d}.txt", event.text)


def _note_loss(folder: RunFolder, emit: Emit, message: str) -> None:
    """Records that another process is lost, before this one ends."""
    folder.write_state(**{**folder.read_state(), "status": "failed", "exit": Exit.UNAVAILABLE, "reason": message})
    emit(Notice(message, "warning"))


@contextmanager
def _failures_noted(folder: RunFolder) -> Iterator[None]:
    """Writes the reason of a failure to state.json."""
    try:
        yield
    except BaseException as error:
        known = folder.read_state()
        if known.get("status") == "running":
            code = int(getattr(error, "exit", Exit.BUG))
            folder.write_state(**{**known, "status": "failed", "exit": code, "reason": str(error) or repr(error)})
        raise


@contextmanager
def machine_told(manifest: Manifest) -> Iterator[None]:
    """Converts failures of the machine and errors in plug-ins into RatrainErrors with one message."""
    try:
        yield
    except RatrainError:
        raise
    except Exception as error:
        told = _machine_failure(error, manifest) or _graph_failure(error, manifest) or _plugin_failure(error, manifest)
        if told is None:
            raise
        raise told from error


def _graph_failure(error: Exception, manifest: Manifest) -> RatrainError | None:
    """Returns a ManifestError for a foreign module that no single graph can hold; None for any other error."""
    foreign = [name for name, patch in manifest.patch.items() if patch.brings_code]
    if not foreign or not isinstance(error, TorchDynamoException):
        return None
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    advice = "--set compile.scope=off trains without compiled code"
    return ManifestError(
        [Fault("", f"patch.{name}", f"cannot be compiled to one graph ({what}); {advice}") for name in foreign]
    )


def _plugin_failure(error: Exception, manifest: Manifest) -> RatrainError | None:
    """Returns a ManifestError with the plug-in's file and line of an error; None if no plug-in is involved."""
    for file in run_files(manifest.patch.values()).values():
        # torch.compile raises its own error, with the frames of the user's code in its text
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        lines += [int(line) for line in re.findall(rf'File "{re.escape(str(file))}", line (\d+)', str(error))]
        if lines:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            return ManifestError([Fault(f"{file}:{lines[-1]}", "", f"{what}; ratrain verify tells more")])
    return None


def _machine_failure(error: Exception, manifest: Manifest) -> RatrainError | None:
    """Returns the RatrainError for lack of memory, attention backend or compiler; None if the error is a bug."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        micro = manifest.train.micro_batch
        return MemoryShortError(
            f"out of memory at train.micro_batch = {micro}; "
            f"--set train.micro_batch={max(1, micro // 2)} gives the same gradients in less memory"
        )
    unserved = ("No available kernel", "No viable backend for scaled_dot_product_attention")
    if manifest.compile.strict and any(sign in text for sign in unserved):
        return UnavailableError(
            "compile.strict: the chosen attention cannot compute this variant; --set compile.strict=false uses another"
        )
    if any(name in text for name in ("InvalidCxxCompiler", "No working C++ compiler", "CppCompileError")):
        return UnavailableError(
            "torch.compile needs a C++ compiler with OpenMP (g++, or clang and libomp); "
            "install one, or run slower with --set compile.backend=eager"
        )
    return None
