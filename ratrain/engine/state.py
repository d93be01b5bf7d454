"""Collects the content of a checkpoint from a run, and restores a run from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.config.identity import run_hash
from ratrain.engine.parts.optimizer_counts import OTHER_STATE
from ratrain.engine.parts.part import Part
from ratrain.engine.progress import Progress
from ratrain.engine.setup import Setup
from ratrain.errors import DataError, Fault, ManifestError
from ratrain.events import Branched, Emit, Notice, Pretrained, Resumed
from ratrain.machine.attention import recorded
from ratrain.machine.rng import restore_rng, rng_state
from ratrain.model.build import seed_of
from ratrain.recipe.groups import Group
from ratrain.storage.checkpoint import (
    Checkpoint,
    Rows,
    flatten_optimizer,
    load,
    load_newest,
    require_same_tensors,
    restore_optimizer,
)

_RNG = "rng|"  # prefix of the names of random generator states


@dataclass(frozen=True)
class RunState:
    """The objects of a run that have state in a checkpoint."""

    setup: Setup
    parts: Sequence[Part]
    progress: Progress

    def snapshot(self) -> Checkpoint:
        """Returns all state that the rest of the run depends on."""
        setup, progress = self.setup, self.progress
        _, plain = flatten_optimizer(setup.step.optimizer, setup.step.names)
        rng, rng_plain = _gather_rng(setup)
        state = {
            "run_hash": run_hash(setup.manifest, setup.parent),
            "optim": type(setup.manifest.optim).kind,
            "data": setup.data.fingerprint,
            "machine": _machine(setup),
            "attention": setup.attention.record() if setup.attention else None,
            "optimizer": plain,
            **{part.key: part.state() for part in self.parts if part.key},
            "rng": rng_plain,
            "buffers": sorted(name for name, _ in setup.model.named_buffers()),
            "skips_in_a_row": progress.skips_in_a_row,
            "skipped": progress.skipped,
            "spent_seconds": progress.spent_seconds,
            "last_loss": progress.last_loss,
            "evaluated_at": progress.evaluated_at,
        }
        return self._divided(Checkpoint(progress.steps, model_tensors(setup), self.tensors() | rng, state))

    def _divided(self, checkpoint: Checkpoint) -> Checkpoint:
        """Moves the tensors of which this process holds some rows to `rows`."""
        sharding = self.setup.world.sharding
        if sharding is None:
            return checkpoint
        groups = checkpoint.model, checkpoint.optimizer
        rows = [{key: t for key, t in group.items() if sharding.owner(key, t)} for group in groups]
        model, optimizer = (
            {key: t for key, t in group.items() if key not in own} for group, own in zip(groups, rows, strict=True)
        )
        return replace(checkpoint, model=model, optimizer=optimizer, rows=Rows(*sharding.place, *rows))

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors of a checkpoint; of those that are divided here, the rows of this process."""
        sharding = self.setup.world.sharding
        if sharding is None:
            return dict(tensors)
        return {key: sharding.own_rows(key, tensor) for key, tensor in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the optimizer and the parts."""
        tensors, _ = flatten_optimizer(self.setup.step.optimizer, self.setup.step.names)
        for part in self.parts:
            tensors |= part.tensors()
        return tensors

    def resume(self, emit: Emit) -> None:
        """Restores the newest checkpoint, else the one that the run branches from, and publishes the event.

        Without either, publishes Pretrained if pretrained weights were loaded. Rank 0 selects the newest checkpoint
        that verifies; the other processes load the same one.
        """
        setup = self.setup
        found = setup.world.lead(lambda: load_newest(setup.checkpoints))
        checkpoint, path, failures = found or (None, None, ())
        path = setup.world.share(path)
        if path is not None:
            checkpoint = checkpoint or load(path)
            for warning in _check_origin(setup, checkpoint, path):
                emit(Notice(warning, "warning"))
            if kept := checkpoint.state.get("attention"):
                setup.attention = recorded(kept)
            self.restore(checkpoint)
            self.progress.saved_at = self.progress.steps
            emit(Resumed(self.progress.steps, str(path), failures))
        elif setup.branch is not None:
            checkpoint = load(setup.branch.checkpoint)
            self._check_branch(checkpoint)
            self.restore(checkpoint)
            emit(Branched(self.progress.steps, setup.branch.run, setup.branch.parent.run_hash))
        elif setup.pretrained is not None:
            init, loaded = setup.manifest.init, setup.pretrained
            emit(Pretrained(str(init.weights), str(init.sha256), loaded.tensors, init.repack, loaded.notes))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores weights, optimizer, random generators, parts and position.

        Raises DataError if the checkpoint holds other tensors than the model, or weights only.
        """
        setup, state = self.setup, checkpoint.state
        model = self._own(checkpoint.model)
        require_same_tensors(model_tensors(setup), replace(checkpoint, model=model))
        with torch.no_grad():
            for name, tensor in model_tensors(setup).items():
                tensor.copy_(model[name])
        setup.precision.publish()
        if not checkpoint.optimizer:
            raise DataError(
                f"the checkpoint of step {checkpoint.step} keeps weights only, as those of finished arms of a study do;"
                " training cannot go on from it"
            )
        tensors = self._own(checkpoint.optimizer)
        restore_optimizer(setup.step.optimizer, setup.step.names, self._moments(tensors), state["optimizer"])
        _restore_own_rng(setup, checkpoint)
        for part in self.parts:
            part.restore(state.get(part.key, {}), tensors)
        self.progress.restore(
            checkpoint.step,
            spent_seconds=state["spent_seconds"],
            last_loss=state["last_loss"],
            evaluated_at=state["evaluated_at"],
        )
        self.progress.skips_in_a_row = state["skips_in_a_row"]
        self.progress.skipped = state.get("skipped", 0)  # not counted before November 2026

    def _moments(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the optimizer's per-parameter tensors of a checkpoint, without those of generators and parts."""
        others = (_RNG, *(mark for part in self.parts for mark in part.marks))
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}

    def _check_branch(self, checkpoint: Checkpoint) -> None:
        """Raises ManifestError if this run cannot branch from the checkpoint.

        Kind and state of the optimizer must match, the parts must accept it, and the budget must end after its step.
        """
        optim, total = self.setup.manifest.optim, self.progress.total_steps
        kind = type(optim).kind
        if checkpoint.state["optim"] != kind:
            message = f"the parent run was trained by {checkpoint.state['optim']}, not by {kind}"
            raise ManifestError([Fault("", "optim.kind", message)])
        if {name.rpartition("|")[2] for name in self._moments(checkpoint.optimizer)} != kept_by(optim):
            raise ManifestError([Fault("", "optim", OTHER_STATE)])
        for part in self.parts:
            part.check_parent(checkpoint.state.get(part.key, {}), checkpoint.optimizer)
        if total is not None and total <= checkpoint.step:
            message = f"ends at step {total}, but the run begins at step {checkpoint.step} of its parent"
            raise ManifestError([Fault("", "train.budget", message)])


def model_tensors(setup: Setup) -> dict[str, Tensor]:
    """Returns the saved tensors of the model by name: parameters as fp32 masters, and buffers."""
    return {**setup.model.state_dict(), **setup.precision.masters}


def _gather_rng(setup: Setup) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Gathers the random generators of every process; tensors are named `rng|<rank>|<device>`."""
    told = setup.world.gather(rng_state())
    tensors = {f"{_RNG}{rank}|{name}": tensor for rank, (own, _) in enumerate(told) for name, tensor in own.items()}
    return tensors, [plain for _, plain in told]


def _restore_own_rng(setup: Setup, checkpoint: Checkpoint) -> None:
    rank, saved = setup.world.rank, checkpoint.state["rng"]
    if rank >= len(saved):  # more processes than were saved: this one starts a sequence of its own
        torch.manual_seed(seed_of(setup.manifest.seed.order, "dropout", rank, checkpoint.step))
        return
    mark = f"{_RNG}{rank}|"
    own = {name.removeprefix(mark): t for name, t in checkpoint.optimizer.items() if name.startswith(mark)}
    restore_rng(own, saved[rank])


def _check_origin(setup: Setup, checkpoint: Checkpoint, path: Path) -> list[str]:
    """Returns warnings about resuming from a checkpoint: a change of machine.

    Raises DataError if the checkpoint belongs to another run, or if the data have changed.
    """
    state = checkpoint.state
    if state["run_hash"] != run_hash(setup.manifest, setup.parent):
        raise DataError(f"{path}: was written by another manifest (run hash {state['run_hash'][:8]})")
    if state["data"] != setup.data.fingerprint:
        raise DataError(f"{path}: was trained on other data than {setup.manifest.data.source} now holds")
    if state["machine"] == _machine(setup):
        return []
    was, now = (", ".join(f"{k} {v}" for k, v in m.items()) for m in (state["machine"], _machine(setup)))
    return [f"saved under {was}; resumed under {now}: equivalent, but not to the bit"]


def kept_by(optim: Any) -> set[str]:
    """Returns the keys of the optimizer's per-parameter state, found by one step on small parameters."""
    weights = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    optimizer = optim.build([Group(("w",), weights[:1], 0.0, True), Group(("b",), weights[1:], 0.0)])
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return {key for state in optimizer.state.values() for key in state}


def _machine(setup: Setup) -> dict[str, object]:
    """Returns the facts of the machine that must match for bit-identical results."""
    kind = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "cpu"
    threads = torch.get_num_threads()
    facts: dict[str, object] = {
        "device": kind,
        "processes": setup.world.size,
        "torch": torch.__version__,
        "threads": threads,
    }
    return facts | ({"sharding": sharding.told()} if (sharding := setup.world.sharding) else {})
