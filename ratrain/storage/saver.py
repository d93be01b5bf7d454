"""Writes the checkpoints of a run, either at once or in a thread beside the next steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from ratrain.errors import CannotCreateError, DiskError
from ratrain.storage.checkpoint import Checkpoint, save


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk."""

    step: int
    path: Path
    size: int  # bytes
    weights: str  # SHA-256 of the weights' file
    seconds: float  # until it was on disk
    stall: float  # of these, seconds for which the caller of `start` or `take` waited


class Saver:
    """Writes one checkpoint at a time into `folder`, which keeps the newest `keep`.

    Beside the steps, a checkpoint is written from a copy of the state in the memory of the host (pinned if the state is
    on a GPU). The copy is made by `start`; its memory is kept for the next one. New memory is slow (the operating
    system clears each page when it is first written), so `reserve` fetches it beside the steps too.
    """

    def __init__(self, folder: Path, *, keep: int, write: Callable[..., tuple[Path, int, str]] = save):
        self._folder, self._keep, self._write = folder, keep, write
        self._copies: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self._reserving: Thread | None = None
        self._result: Written | BaseException | None = None
        self._stall = 0.0

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Fetches the memory for copies of checkpoints like this one, in a thread."""
        tensors = [*checkpoint.model.items(), *checkpoint.optimizer.items()]
        self._reserving = Thread(target=lambda: [self._host(*pair).zero_() for pair in tensors], daemon=True)
        self._reserving.start()

    def start(self, checkpoint: Checkpoint, *, behind: bool = False) -> None:
        """Writes `checkpoint` and returns; with `behind` it returns once the state is copied.

        An earlier checkpoint must have been taken with `take`. Errors are returned by `take`.
        """
        assert self._thread is None, "take the checkpoint that is being written first"
        assert self._result is None, "take the checkpoint that was written first"
        began = time.perf_counter()
        if behind:
            self._thread = Thread(target=self._run, args=(self._copied(checkpoint), began), daemon=True)
            self._thread.start()
        else:
            self._run(checkpoint, began)
        self._stall = time.perf_counter() - began

    def take(self, *, wait: bool) -> Written | DiskError | CannotCreateError | None:
        """Returns the checkpoint that was started last, or what failed; None if there is none.

        Without `wait` also None while it is being written. Raises any other error of the writer.
        """
        began = time.perf_counter()
        if self._thread:
            if self._thread.is_alive() and not wait:
                return None
            self._thread.join()
            self._stall += time.perf_counter() - began
            self._thread = None
        result, self._result = self._result, None
        if isinstance(result, Written):
            return replace(result, stall=min(self._stall, result.seconds))
        if result is None or isinstance(result, (DiskError, CannotCreateError)):
            return result
        raise result

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until nothing is being written, but not for a user who interrupts twice: what is aside stays there."""
        if self._thread and not (kind and issubclass(kind, KeyboardInterrupt)):
            self._thread.join()

    def _run(self, checkpoint: Checkpoint, began: float) -> None:
        try:
            path, size, weights = self._write(self._folder, checkpoint, keep=self._keep)
            self._result = Written(checkpoint.step, path, size, weights, time.perf_counter() - began, 0.0)
        except BaseException as error:
            self._result = error

    def _copied(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copies tensors and values; returns once the copies are complete."""
        if self._reserving:
            self._reserving.join()
        groups = checkpoint.model, checkpoint.optimizer
        model, optimizer = ({name: self._copy(name, tensor) for name, tensor in group.items()} for group in groups)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return Checkpoint(checkpoint.step, model, optimizer, copy.deepcopy(checkpoint.state))

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        return self._host(name, tensor).copy_(tensor.detach(), non_blocking=True)

    def _host(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the memory for a copy of the tensor of this name."""
        held = self._copies.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            self._copies[name] = held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held
