"""Writes the checkpoints of a run, either at once or in a thread beside the next steps."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from ratrain.errors import CannotCreateError, DiskError
from ratrain.machine.distributed import World
from ratrain.storage.checkpoint import Checkpoint, Sum, begin, commit, discard, write_tensors


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk."""

    step: int
    path: Path
    size: int  # bytes
    weights: str  # SHA-256 of the weights' file; empty if the model is divided
    seconds: float  # until it was on disk
    stall: float  # of these, seconds for which the caller of `start` or `take` waited


class Saver:
    """Writes one checkpoint at a time into `folder`, which keeps the newest `keep`.

    Beside the steps, a checkpoint is written from a copy of the state in the memory of the host (pinned if the state is
    on a GPU). The copy is made by `start`; its memory is kept for the next one. New memory is slow (the operating
    system clears each page when it is first written), so `reserve` fetches it beside the steps too.

    If the model is divided among processes, all must call `start` and `take` together: each writes its own rows, and
    rank 0 completes the checkpoint in `take`, once all are written. Otherwise only rank 0 calls `start`.
    """

    def __init__(self, folder: Path, *, keep: int, world: World = World()):  # noqa: B008 - frozen
        self._folder, self._keep, self._world = folder, keep, world
        self._copies: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self._reserving: Thread | None = None
        self._job: _Job | None = None

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Fetches the memory for copies of checkpoints like this one, in a thread."""
        pairs = [pair for group in _groups(checkpoint) for pair in group.items()]
        self._reserving = Thread(target=lambda: [self._host(*pair).zero_() for pair in pairs], daemon=True)
        self._reserving.start()

    def start(self, checkpoint: Checkpoint, *, behind: bool = False) -> None:
        """Writes `checkpoint` and returns; with `behind` it returns once the state is copied.

        An earlier checkpoint must have been taken with `take`. Errors are returned by `take`.
        """
        assert self._job is None, "take the checkpoint that was started before"
        began = time.perf_counter()
        self._job = _Job(self._copied(checkpoint) if behind else checkpoint, began)
        self._job.error = self._begun(checkpoint)
        if self._job.error is None and behind:
            self._thread = Thread(target=self._write, args=(self._job,), daemon=True)
            self._thread.start()
        elif self._job.error is None:
            self._write(self._job)
        self._job.stall = time.perf_counter() - began

    def take(self, *, wait: bool) -> Written | DiskError | CannotCreateError | None:
        """Returns the checkpoint that was started last, or what failed; None if there is none.

        Without `wait` also None while it is being written. Raises any other error of a writer.
        """
        job, began = self._job, time.perf_counter()
        if job is None:
            return None
        if self._thread and wait:
            self._thread.join()
        if any(self._gather(self._thread is not None and self._thread.is_alive())):
            return None
        self._job = self._thread = None
        result = self._completed(job)
        if isinstance(result, Written):
            return replace(result, stall=min(result.seconds, job.stall + time.perf_counter() - began))
        if isinstance(result, (DiskError, CannotCreateError)):
            return result
        raise result

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until nothing is being written, but not for a user who interrupts twice: what is aside stays there."""
        if self._thread and not (kind and issubclass(kind, KeyboardInterrupt)):
            self._thread.join()

    # -- one checkpoint, in order ----------------------------------------------------------------------------------

    def _begun(self, checkpoint: Checkpoint) -> BaseException | None:
        """Creates the folder, on rank 0; returns what failed, on every process."""
        failed = _failure(lambda: begin(self._folder, checkpoint)) if self._world.leads else None
        return self._world.share(failed) if self._world.sharding else failed

    def _write(self, job: _Job) -> None:
        """Writes the files of this process and, if it is alone, completes the checkpoint."""
        sharding = self._world.sharding
        rows = sharding is None or sharding.is_first_replica

        def act() -> None:
            job.sums = write_tensors(self._folder, job.checkpoint, whole=self._world.leads, rows=rows)
            if sharding is None:
                job.written = self._commit(job, job.sums)

        job.error = _failure(act)

    def _completed(self, job: _Job) -> Written | BaseException:
        """Completes a checkpoint that all processes have written; the same result on each."""
        if self._world.sharding is None:
            return job.error or job.written or AssertionError("neither written nor failed")
        told = self._world.gather((job.error, job.sums))
        if failed := next((error for error, _ in told if error), None):
            if self._world.leads:  # no process writes any more
                discard(self._folder, job.checkpoint)
            return failed
        sums = {name: each for _, own in told for name, each in own.items()}
        if self._world.leads:
            job.error = _failure(lambda: setattr(job, "written", self._commit(job, sums)))
            if job.error:
                discard(self._folder, job.checkpoint)
        return self._world.share(job.error or job.written) or AssertionError("neither written nor failed")

    def _commit(self, job: _Job, sums: Mapping[str, Sum]) -> Written:
        path, size, weights = commit(self._folder, job.checkpoint, sums, keep=self._keep)
        known = "" if job.checkpoint.rows else weights
        return Written(job.checkpoint.step, path, size, known, time.perf_counter() - job.began, 0.0)

    def _gather(self, value: bool) -> list[bool]:
        return self._world.gather(value) if self._world.sharding else [value]

    # -- copies ----------------------------------------------------------------------------------------------------

    def _copied(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copies tensors and values; returns once the copies are complete."""
        if self._reserving:
            self._reserving.join()
        copies = [{name: self._copy(name, tensor) for name, tensor in group.items()} for group in _groups(checkpoint)]
        for device in {tensor.device for group in _groups(checkpoint) for tensor in group.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        model, optimizer, *of_rows = copies
        rows = replace(checkpoint.rows, model=of_rows[0], optimizer=of_rows[1]) if checkpoint.rows else None
        return Checkpoint(checkpoint.step, model, optimizer, copy.deepcopy(checkpoint.state), rows)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        return self._host(name, tensor).copy_(tensor.detach(), non_blocking=True)

    def _host(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the memory for a copy of the tensor of this name."""
        held = self._copies.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            self._copies[name] = held = _memory(tensor)
        return held


def _memory(tensor: Tensor) -> Tensor:
    """Returns host memory of the tensor's shape: pinned for one on a GPU, unless the system refuses to pin more."""
    if tensor.is_cuda:
        with contextlib.suppress(RuntimeError):
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return torch.empty(tensor.shape, dtype=tensor.dtype)


@dataclass
class _Job:
    """A checkpoint on its way to the disk."""

    checkpoint: Checkpoint
    began: float
    stall: float = 0.0
    sums: Mapping[str, Sum] = field(default_factory=dict)
    written: Written | None = None
    error: BaseException | None = None


def _groups(checkpoint: Checkpoint) -> list[Mapping[str, Tensor]]:
    rows = checkpoint.rows
    return [checkpoint.model, checkpoint.optimizer, *([rows.model, rows.optimizer] if rows else [])]


def _failure(act: Callable[[], None]) -> BaseException | None:
    try:
        act()
    except BaseException as error:
        return error
    return None
