"""The dry run: all phases of a run over two steps of a tiny batch, and an estimate of the full run's cost."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ratrain.config.identity import recipe_hash
from ratrain.config.resolve import steps_total, tokens_per_step
from ratrain.config.schema import ActivationSection, Budget, Manifest, Span
from ratrain.engine.engine import Engine
from ratrain.engine.parts.pruning import Pruning
from ratrain.engine.strategy import state_bytes
from ratrain.events import Emit, Evaluated, Event, RunStarted, Saved, Window
from ratrain.machine.attention import choose
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import pick_device, set_determinism
from ratrain.machine.signals import GRACE
from ratrain.run.launch import machine_told
from ratrain.sinks.trackers import require
from ratrain.storage.checkpoint import check_room, load
from ratrain.storage.folder import listed
from ratrain.strict_json import strict_json

_ROWS = 2  # sequences per step: two micro-steps of one
_STEPS = 2
_PROCESSES = (2, 8, 64)


def rehearse(manifest: Manifest, *, device: str, emit: Emit, checkpoints: Path = Path("runs")) -> dict[str, Any]:
    """Builds, compiles, trains two steps, evaluates, saves and restores at the manifest's shapes; returns the results.

    Leaves no files but compiled code in the cache. Raises RatrainError as the run would, also if the disk of
    `checkpoints` has no room for them.
    """
    require(manifest.log.trackers)
    keep_compiled_code()
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        emit(event)

    place = pick_device(device)
    set_determinism(manifest.train.deterministic, place)  # first, because it affects which backends can run
    attention = choose(manifest, rows=manifest.train.micro_batch, device=place, emit=listen)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(two_steps(manifest), checkpoints=Path(folder), device=place, emit=listen, attention=attention)
        check_room(checkpoints, engine.checkpoint_bytes, keep=manifest.checkpoint.keep)
        ended = engine.run()
        newest = listed(Path(folder))[0]
        restored = Engine(two_steps(manifest), checkpoints=Path(folder), device=engine.device, emit=seen.append)
        restored.state.restore(load(newest))
        require_equal(engine, restored)
    windows = [event for event in seen if isinstance(event, Window)]
    saved = next(event for event in seen if isinstance(event, Saved))
    steps = steps_total(manifest)
    tokens = None if steps is None else steps * tokens_per_step(manifest)
    rate = windows[-1].tokens_per_second
    return {
        "parameters": engine.setup.cost.parameters,
        "losses": [loss for window in windows for loss in window.losses],
        "validation_loss": next(event.loss for event in seen if isinstance(event, Evaluated)),
        "attention": attention.record(),
        "graphs": windows[-1].graphs,
        "recompiles": windows[-1].recompiles,
        "compile_seconds": ended.seconds.get("compile", 0.0),
        "steps": steps,
        "tokens": tokens,
        "train_flops": None if tokens is None else tokens * engine.setup.cost.train_flops_per_token,
        "tokens_per_second": rate,
        "train_seconds": manifest.train.budget.seconds if tokens is None else tokens / rate,
        "state_bytes": _state_bytes(engine),
        "state_bytes_of_fsdp": {str(n): state_bytes(manifest, engine.model, size=n) for n in _PROCESSES},
        "save_seconds": saved.seconds,
        "peak_memory": windows[-1].peak_memory,
        "disk_bytes": saved.bytes * (manifest.checkpoint.keep + 1),  # one more while the next is being written
    }


def _state_bytes(engine: Engine) -> int:
    """Returns the bytes of weights, gradients, optimizer state after a step, and pruning masks."""
    step = engine.train_step
    kept = [tensor for state in step.optimizer.state.values() for tensor in state.values() if tensor.numel() > 1]
    weights = sum(weight.nbytes for weight in step.parameters)
    return 2 * weights + sum(t.nbytes for t in (*kept, *engine.part(Pruning).tensors().values()))


def two_steps(manifest: Manifest) -> Manifest:
    """Returns the manifest with two steps of two rows, and with evaluation, checkpoint and log after each step.

    In the first step every mechanism is off, in the second all are on.
    """
    sections = {
        "train": {"budget": Budget(steps=_STEPS), "batch": _ROWS, "micro_batch": 1},
        "eval": {"every": 1, "windows": _ROWS},
        "checkpoint": {"every": 1},
        "log": {"every": 1},
    }
    changed = {name: getattr(manifest, name).model_copy(update=keys) for name, keys in sections.items()}
    if manifest.prune:  # pruning reaches its target after the first step
        spans = {"start": Span(steps=0), "end": Span(steps=1)}
        changed["prune"] = manifest.prune.model_copy(update=spans)
    changed["activation"] = ActivationSection(kind="after", after=Span(steps=1))
    changed["patch"] = {name: patch.model_copy(update={"activation": None}) for name, patch in manifest.patch.items()}
    return manifest.model_copy(update=changed)


def require_equal(engine: Engine, restored: Engine) -> None:
    """Raises AssertionError if a tensor of the two engines differs."""
    kept, loaded = engine.snapshot(), restored.snapshot()
    for name, tensor in {**kept.model, **kept.optimizer}.items():
        other = loaded.model[name] if name in loaded.model else loaded.optimizer[name]
        assert torch.equal(tensor, other), f"{name} is not restored from a checkpoint"


def dry_run(manifest: Manifest, *, device: str, as_json: bool, emit: Emit, checkpoints: Path = Path("runs")) -> str:
    """Returns the results of `rehearse` as text or as one JSON document; `emit` receives each event."""

    def shown(event: Event) -> None:  # the recipe is that of the run, not that of two steps
        emit(replace(event, recipe_hash=recipe_hash(manifest)) if isinstance(event, RunStarted) else event)

    with machine_told(manifest):
        seen = rehearse(manifest, device=device, emit=shown, checkpoints=checkpoints)
    if as_json:
        return json.dumps(strict_json(seen), indent=1, allow_nan=False)
    peak = _size(seen["peak_memory"])
    losses = ", ".join(f"{loss:.4f}" for loss in seen["losses"])
    divided = ", ".join(f"{_size(size)} on each of {n}" for n, size in seen["state_bytes_of_fsdp"].items())
    lines = [
        f"{manifest.id}: built, compiled {seen['graphs']} graphs in {seen['compile_seconds']:.1f} s "
        f"({seen['recompiles']} recompiles), trained {_STEPS} steps (loss {losses}), evaluated "
        f"({seen['validation_loss']:.4f}), saved and restored",
        f"parameters     {seen['parameters']:,}",
        f"attention      {seen['attention']['backend']} ({seen['attention']['source']})",
        f"memory         {_size(seen['state_bytes'])} of weights, gradients and optimizer; peak {peak} here, with",
        f"               one sequence per pass in place of train.micro_batch = {manifest.train.micro_batch}",
        f"               divided by FSDP: {divided}",
        f"disk           {_size(seen['disk_bytes'])} of checkpoints, {seen['save_seconds']:.1f} s to write one",
    ]
    if seen["save_seconds"] > GRACE / 2:
        lines.append(f"               torchrun kills a process {GRACE} s after a signal; a scheduler may do so earlier")
    if seen["tokens"] is None:
        lines.append(f"time           {seen['train_seconds']:.0f} s of training, the budget")
    else:
        lines += [
            f"budget         {seen['tokens']:,} tokens in {seen['steps']:,} steps, {seen['train_flops']:.3g} FLOPs",
            f"time           at most about {seen['train_seconds'] / 60:.0f} min of training here: "
            f"{seen['tokens_per_second']:,.0f} tokens/s in this rehearsal, larger micro-batches run faster",
        ]
    return "\n".join([*lines, "nothing was written"])


def _size(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"
