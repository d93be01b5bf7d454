"""The CUDA branches outside of the train step: each is run on fakes, and must come to its end."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

from bench.gpu import correctness, inputs, timing
from bench.gpu.ledger import fault
from bench.rehearsal.step import Case, Rehearsal, built, chosen

import torch  # isort: skip - the guard comes before it
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from ratrain.engine import assembly, engine, setup
from ratrain.engine.divergence import Divergence
from ratrain.engine.engine import Engine
from ratrain.errors import PreemptedError
from ratrain.events import Window
from ratrain.machine import attention, device, rng
from ratrain.machine.distributed import World
from ratrain.sinks import monitor
from ratrain.storage import checkpoint, saver

GPU = torch.device("cuda")
# variants that differ in training, decoding, pruning, optimizer or memory; and steps until all features are active
RUNS = {"v0": 8, "v15": 80, "v19": 8, "c2": 24, "tied_ra": 8, "modern": 8, "spam": 8, "spam-magnitude": 8, "bitter7": 8}

_kept: list[Engine] = []  # freeing fakes of a device that is not there has crashed torch
_WINDOW = Window(2, 8, 0.5, (1.0,), (1.0,), 0, 1e-3, 1.0, 8.0, None, None, 0, 1, 0, None)


def rehearse(rehearsal: Rehearsal, part: str = "") -> Iterator[tuple[str, list[str]]]:
    """Runs each branch with a name that begins with `part`; yields its faults: the error that ends it, and operations
    whose fakes differ from the tensors they return."""
    for name, branch in branches(rehearsal):
        if not name.startswith(part):
            continue
        faults = []
        with rehearsal.recorder.recording():
            try:
                with rehearsal.mode:
                    branch()
            except Exception as error:  # of any kind: it is the result
                where = traceback.extract_tb(error.__traceback__)
                ours = next((f for f in reversed(where) if "/torch/" not in f.filename), where[-1])
                place = f"{Path(ours.filename).name}:{ours.lineno}"
                faults.append(f"at {place}: {fault(error)}")
            faults += sorted(set(rehearsal.recorder.differing))
        yield name, faults


def branches(rehearsal: Rehearsal) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each by name, to be called in the rehearsal's mode."""
    yield "device: auto", lambda: device.pick_device("auto")
    yield "device: peak", lambda: device.peak_flops(GPU, "bf16")
    yield "device: bandwidth", lambda: device.memory_bandwidth(GPU)
    yield "device: environment", lambda: device.environment(GPU)
    yield "device: random numbers", lambda: rng.restore_rng(*rng.rng_state())
    yield "monitor: without NVML", _monitored
    for dtype, channels in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 64)):
        case = attention.Case((16, 12 * 64 // channels, 1024, channels), dtype, 0.0, GPU)
        yield f"attention: measure {case}", lambda case=case: _measured(case)
    setting = inputs.Setting()
    yield "gpu_check: peaks", lambda: timing.peaks(setting)
    for group in (timing.attention, timing.loss, timing.decoding):
        yield f"gpu_check: time {group.__name__}", lambda group=group: [one.run() for one in group(setting)]
    for one in correctness.all_checks(setting):
        dtype = str(one.dtype).removeprefix("torch.")
        yield f"gpu_check: {one.name} {dtype}", lambda one=one: list(one.run(setting, one.dtype))
    yield "two ranks: a step in bf16", lambda: _two_ranks(rehearsal)
    for name, steps in RUNS.items():
        yield f"a run of {name}, resumed", lambda name=name, steps=steps: _run(rehearsal, name, steps)


def _monitored() -> None:
    """A GPU without readable load: its figures are omitted."""
    found: list[Any] = []
    with patch.object(monitor, "_nvml", lambda: None):
        monitor.Monitor(found.append, gpu=device.gpu_uuid(GPU))(_WINDOW)
    if found[0].gpu is not None:
        raise AssertionError(f"read {found[0].gpu}")


def _measured(case: attention.Case) -> dict[str, float]:
    with patch.object(attention, "_aside", lambda place: contextlib.nullcontext()):
        found = attention.measure(case)
    if not found:
        raise AssertionError("no backend serves")
    return found


def _two_ranks(rehearsal: Rehearsal) -> None:
    """Takes two steps on the first of two ranks: the second must run one all-reduce, without a wait of the host.

    In bf16 alone: the reducer of torch's DDP, which averages the gradients of other precisions, reads them from C++.
    """
    case = Case("v0", scale="tiny", batch=4, keys=("train.micro_batch=2",))
    manifest = case.manifest()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with chosen(case, rehearsal.card):
            _, step = assembly.train_step(manifest, lr=1e-4, device="cuda", world=World(0, 2))
            step.share_gradients()
            tokens = torch.empty(4, manifest.model.block_size + 1, dtype=torch.int64, device="cuda")
            step(tokens[:, :-1], tokens[:, 1:])
            rehearsal.recorder.clear()  # the first makes the optimizer's state
            step(tokens[:, :-1], tokens[:, 1:])
    finally:
        dist.destroy_process_group()
    sums = sum(one.count for one in rehearsal.recorder.work.values() if one.name.startswith("c10d.allreduce"))
    if sums != 1 or rehearsal.recorder.syncs:
        raise AssertionError(f"{sums} sums over the ranks, expected 1; the host waits at {rehearsal.recorder.syncs}")


def _run(rehearsal: Rehearsal, name: str, steps: int) -> None:
    """Trains, evaluates, saves and stops a run, then resumes it from its checkpoint up to its sample."""
    cadence = (f"{key}={max(1, steps // 2)}" for key in ("eval.every", "checkpoint.every", "log.every"))
    keys = ("compile.scope=off", f"train.budget.steps={steps}", *cadence)
    case = Case(name, scale="tiny", batch=4, keys=keys)
    manifest = replace(case, scope="off").manifest()
    with tempfile.TemporaryDirectory() as folder, chosen(case, rehearsal.card), _real_files():
        options = {"checkpoints": Path(folder), "device": GPU, "emit": lambda event: None}
        changes = (
            (setup, "build", built),
            (assembly, "build", built),
            (engine, "_SAMPLE_TOKENS", 40),
        )  # past a context
        with contextlib.ExitStack() as stack:
            for where, key, other in changes:
                stack.enter_context(patch.object(where, key, other))
            first = Engine(manifest, **options)
            with contextlib.suppress(PreemptedError):
                first.run(until=steps // 2)
            again = Engine(manifest, **options)
            again.run()
    _kept.extend((first, again))
    if not 0 < first.progress.steps < again.progress.steps == steps:
        raise AssertionError(f"stopped at step {first.progress.steps}, ended at {again.progress.steps} of {steps}")


@contextlib.contextmanager
def _real_files() -> Iterator[None]:
    """Checkpoint files hold zeros in place of fakes and are read as fakes; checks for finite values are skipped.

    Nothing is threaded, because a fake is known only in the thread that made it.
    """
    encoded, mapped = checkpoint.encoded, checkpoint.mapped

    def zeros(tensors: Any) -> Iterator[Any]:
        with unset_fake_temporarily():
            yield from encoded({name: torch.zeros(x.shape, dtype=x.dtype) for name, x in tensors.items()})

    def fakes(path: Path) -> dict[str, torch.Tensor]:
        with unset_fake_temporarily():
            real = mapped(path)
        return {name: torch.empty(x.shape, dtype=x.dtype) for name, x in real.items()}

    with (
        patch.object(checkpoint, "encoded", zeros),
        patch.object(checkpoint, "mapped", fakes),
        patch.object(checkpoint, "_require_finite", lambda *given: None),
        patch.object(Divergence, "check_weights", lambda *given: None),
        patch.object(saver, "Thread", _AtOnce),
    ):
        yield


class _AtOnce(Thread):
    """A thread whose work is done by the thread that starts it."""

    def start(self) -> None:
        self.run()

    def join(self, timeout: float | None = None) -> None:
        pass
