"""Trains some steps of a manifest under torch's profiler, with a marker around each phase."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ratrain.config.schema import Manifest
from ratrain.data.source import open_data
from ratrain.engine.assembly import train_step
from ratrain.engine.step import TrainStep
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import keep_freed_memory, set_determinism, synchronize
from ratrain.model.build import seed_of
from ratrain.model.gpt2 import GPT2
from ratrain.profile.fused import Figures, announced
from ratrain.profile.rows import BACKWARD, CLIP, DATA, FORWARD, MARK, OPTIMIZER, WINDOW

_ROOM = 256 << 20  # bytes
_WARMUP = 3
_SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


@dataclass
class Recording:
    """The recorded steps: the profile, the times without it, and the memory of long-lived tensors."""

    model: GPT2
    figures: Figures
    compiled: bool
    steps: int
    unprofiled: list[float]  # seconds a step, without the profiler
    others: float  # number of CPUs that other processes kept busy during the recording
    profiler: Any
    held: dict[str, int]  # bytes of tensors that live through a step
    gradients: set[int]  # addresses of the gradients that the last step clipped

    @property
    def results(self) -> Any:
        return self.profiler.profiler.kineto_results


class Stepper:
    """The manifest's own train step with its batches; `mark` adds markers around its phases."""

    def __init__(self, manifest: Manifest, device: torch.device):
        self.manifest, self.device = manifest, device
        spec = manifest.model
        data = open_data(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
        order = {"seed": manifest.seed.order, "batch": manifest.train.batch, "block_size": spec.block_size}
        self.sampler = data.sampler(**order)
        torch.manual_seed(seed_of(manifest.seed.order, "dropout", 0))
        self.model, self.step = train_step(manifest, lr=manifest.schedule.lr, device=str(device))
        self.gradients: set[int] = set()
        self._taken = 0

    def __call__(self) -> None:
        """Takes one step on the next batch."""
        with record_function(MARK + DATA):
            batch = self._batch()
        with record_function(MARK + OPTIMIZER):  # the part of the step outside inner markers
            self.step(*batch)
        self._taken += 1

    def timed(self, count: int) -> list[float]:
        """Returns `count` times in seconds a step; on a GPU each is the mean of five steps, since synchronizing makes
        the GPU wait."""
        each, seconds = 1 if self.device.type == "cpu" else 5, []
        for _ in range(count):
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(each):
                self()
            synchronize(self.device)
            seconds.append((time.perf_counter() - start) / each)
        return seconds

    def mark(self) -> None:
        """Wraps the forward pass, the backward pass and clipping of later steps in markers."""
        step: Any = self.step
        step.model = _Marked(step.model, FORWARD)
        step.backward = _marking(step.backward, BACKWARD)
        step._clip = self._noting(_marking(step._clip, CLIP))

    def held(self) -> dict[str, int]:
        """Returns the bytes of the weights (with copies and buffers), and of the optimizer's state."""
        step: TrainStep = self.step
        weights = [*self.model.parameters(), *self.model.buffers(), *step.parameters]
        state = [value for entry in step.optimizer.state.values() for value in entry.values()]
        return {"parameters": _stored(weights), "optimizer_state": _stored(state)}

    def _batch(self) -> tuple[Tensor, Tensor]:
        tokens, targets = self.sampler.batch(self._taken)
        if self.device.type == "cpu":
            return tokens, targets
        return (
            tokens.pin_memory().to(self.device, non_blocking=True),
            targets.pin_memory().to(self.device, non_blocking=True),
        )

    def _noting(self, clip: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def noting() -> Tensor:
            grads = [p.grad for p in self.step.parameters if p.grad is not None]
            self.gradients = {grad.untyped_storage().data_ptr() for grad in grads}
            return clip()

        return noting


class _Marked(nn.Module):
    """A model with a marker around each forward pass."""

    def __init__(self, inner: nn.Module, phase: str):
        super().__init__()
        self.inner, self.phase = inner, phase

    def forward(self, *args: Any) -> Tensor:
        with record_function(MARK + self.phase):
            return self.inner(*args)


def _marking(call: Callable[..., Tensor], phase: str) -> Callable[..., Tensor]:
    def marking(*args: Any) -> Tensor:
        with record_function(MARK + phase):
            return call(*args)

    return marking


def _stored(values: list[Any]) -> int:
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def record(
    manifest: Manifest, device: torch.device, *, steps: int, say: Callable[[str], None], snapshot: Path
) -> Recording:
    """Compiles, warms up, times `steps` steps without the profiler and then records `steps` steps with it.

    Every mechanism of the variant is switched on, regardless of its schedule. On a GPU, the allocator's history of one
    more step is written to `snapshot`.
    """
    keep_compiled_code()
    keep_freed_memory()
    set_determinism(manifest.train.deterministic, device)
    stepper = Stepper(manifest, device)
    compiled = manifest.compile.scope != "off" and manifest.compile.backend == "inductor"
    with announced() if compiled else nullcontext(Figures()) as figures:
        if compiled:
            say("compiling each kernel separately: up to a minute the first time, then seconds")
        stepper()
    for _ in range(_WARMUP):
        stepper()
    say(f"timing {steps} steps without the profiler, then {steps} with it")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    profiler = profile(activities=activities, record_shapes=True, profile_memory=True, acc_events=True)
    with _others() as others:
        unprofiled = stepper.timed(steps)
        stepper.mark()
        _make_room(device)
        _profiled(stepper, profiler, steps)
    gradients = stepper.gradients
    if device.type == "cuda":
        _snapshot(stepper, snapshot)
    return Recording(
        stepper.model, figures, compiled, steps, unprofiled, others[0], profiler, stepper.held(), gradients
    )


def _make_room(device: torch.device) -> None:
    """Grows the heap in advance by 256 MiB for the events of a profile, on a CPU.

    Recorded events are allocated between the arrays of a step. Without room, those arrays would take fresh pages from
    the system each time, and the step would be charged for it.
    """
    if device.type == "cpu":
        torch.empty(_ROOM // 4).fill_(0.0)


def _profiled(stepper: Stepper, profiler: profile, steps: int) -> None:
    """Runs `steps` steps under the profiler within a marker, after one step that sets the profiler up."""
    with _quiet():
        profiler.start()
        stepper()
        synchronize(stepper.device)
    with record_function(MARK + WINDOW):
        for _ in range(steps):
            stepper()
        synchronize(stepper.device)
    with _quiet():
        profiler.stop()


def syncs(recording: Recording) -> dict[str, float]:
    """Counts the waits for the GPU and the scalar reads from it, per step."""
    seen = [event.name() for event in recording.results.events()]
    return {name: seen.count(name) / (recording.steps + 1) for name in _SYNCS if name in seen}


def _snapshot(stepper: Stepper, file: Path) -> None:
    """Writes the history of a GPU's allocator over one step, for pytorch.org/memory_viz."""
    torch.cuda.memory._record_memory_history(max_entries=1_000_000)
    try:
        stepper()
        synchronize(stepper.device)
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


@contextmanager
def _others() -> Iterator[list[float]]:
    """Yields a list that receives, at the end of the block, the number of CPUs kept busy by other processes."""

    def clocks() -> tuple[float, float, float]:
        times = psutil.cpu_times()._asdict()
        # user time already includes guest time
        busy = sum(seconds for kind, seconds in times.items() if kind not in ("idle", "iowait", "guest", "guest_nice"))
        return busy, time.process_time(), time.perf_counter()

    found: list[float] = []
    begun = clocks()
    yield found
    busy, own, seconds = (now - then for now, then in zip(clocks(), begun, strict=True))
    found.append(max(0.0, busy - own) / seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Redirects file descriptor 2 to /dev/null: the profiler's library prints notices to stderr outside of Python."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
