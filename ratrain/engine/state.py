"""What a checkpoint holds of a run, and how it is put back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ratrain.config.identity import run_hash
from ratrain.engine.attention import recorded
from ratrain.engine.average import is_average
from ratrain.engine.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load,
    load_newest,
    require_same_tensors,
    restore_optimizer,
)
from ratrain.engine.rng import restore_rng, rng_state
from ratrain.errors import DataError, Fault, ManifestError
from ratrain.events import Branched, Notice, Pretrained, Resumed
from ratrain.model.build import seed_of
from ratrain.recipe.groups import Group
from ratrain.recipe.prune.pruner import MARKS

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine

# positions and counts of the engine that decide what comes next
_OWN = "own|"  # begins the names of what an optimizer keeps beside the state of each parameter
_POSITION = ("spent_seconds", "last_loss", "evaluated_at")


def snapshot(engine: Engine) -> Checkpoint:
    """Everything that the rest of the run depends on."""
    optimizer, plain = flatten_optimizer(engine.train_step.optimizer, _optimized_names(engine))
    rng, rng_plain = _gather_rng(engine)
    state = {
        "run_hash": run_hash(engine.manifest, engine.parent),
        "optim": type(engine.manifest.optim).kind,
        "data": engine.corpus.fingerprint,
        "machine": _machine(engine),
        "attention": engine.attention.record() if engine.attention else None,
        "optimizer": plain,
        "activation": engine.switchboard.state_dict(),
        "fitting": engine.fitting.state_dict(),
        "pruning": engine.pruning.state_dict(),
        "rng": rng_plain,
        "buffers": sorted(name for name, _ in engine.model.named_buffers()),
        "skips_in_a_row": engine.divergence.in_a_row,
        "skipped": engine.divergence.skipped,
        **{name: getattr(engine, name) for name in _POSITION},
    }
    own = {f"{_OWN}{name}": tensor for name, tensor in engine.tallies.own.items()}
    tensors = optimizer | own | rng | engine.average.state() | engine.pruning.tensors()
    return Checkpoint(engine.steps_done, _model_tensors(engine), tensors, state)


def resume(engine: Engine) -> None:
    """Puts the engine where its run stopped, or at the checkpoint of another that it begins with, and says so.

    The first process looks for the newest checkpoint that verifies; the others read the one that it found.
    """
    found = engine.world.lead(lambda: load_newest(engine.checkpoints))
    checkpoint, path, failures = found or (None, None, ())
    path = engine.world.share(path)
    if path is not None:
        checkpoint = checkpoint or load(path)
        for warning in _check_origin(engine, checkpoint, path):
            engine.emit(Notice(warning, "warning"))
        if kept := checkpoint.state.get("attention"):
            engine.attention = recorded(kept)
        restore(engine, checkpoint)
        engine.saved_at = engine.steps_done
        engine.emit(Resumed(engine.steps_done, str(path), failures))
    elif engine.branch is not None:
        checkpoint = load(engine.branch.checkpoint)
        _check_branch(engine, checkpoint)
        restore(engine, checkpoint)
        engine.emit(Branched(engine.steps_done, engine.branch.run, engine.branch.parent.run_hash))
    elif engine.pretrained is not None:
        init, loaded = engine.manifest.init, engine.pretrained
        engine.emit(Pretrained(str(init.weights), str(init.sha256), loaded.tensors, init.repack, loaded.notes))


def graft(engine: Engine) -> None:
    """Puts the engine where the run ended that it begins with; what is to be fitted stays as it was built."""
    assert engine.branch
    checkpoint = load(engine.branch.checkpoint)
    sites = tuple(f"{site}." for modules in engine.fitting.modules.values() for site in modules)
    fresh = {name: tensor for name, tensor in _model_tensors(engine).items() if name.startswith(sites)}
    kept = {name: tensor for name, tensor in checkpoint.model.items() if not name.startswith(sites)}
    restore(engine, replace(checkpoint, model=kept | fresh))
    engine.emit(Branched(engine.steps_done, engine.branch.run, engine.branch.parent.run_hash))


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's weights, optimizer, generators and position back."""
    require_same_tensors(_model_tensors(engine), checkpoint)
    with torch.no_grad():
        for name, tensor in _model_tensors(engine).items():
            tensor.copy_(checkpoint.model[name])
    engine.precision.publish()
    if not checkpoint.optimizer:
        raise DataError(
            f"the checkpoint of step {checkpoint.step} keeps weights only, as those of finished arms of a study do;"
            " training cannot go on from it"
        )
    others = ("rng|", _OWN, *MARKS)
    moments = {n: t for n, t in checkpoint.optimizer.items() if not n.startswith(others) and not is_average(n)}
    restore_optimizer(engine.train_step.optimizer, _optimized_names(engine), moments, checkpoint.state["optimizer"])
    for name, tensor in engine.tallies.own.items():
        tensor.copy_(checkpoint.optimizer[f"{_OWN}{name}"])
    engine.tallies.begin()
    engine.average.restore(checkpoint.optimizer)
    _restore_own_rng(engine, checkpoint)
    engine.switchboard.load_state_dict(checkpoint.state["activation"])
    engine.fitting.load_state_dict(checkpoint.state.get("fitting", {}))
    engine.pruning.restore(checkpoint)
    engine.steps_done = checkpoint.step
    engine.divergence.in_a_row = checkpoint.state["skips_in_a_row"]
    engine.divergence.skipped = checkpoint.state.get("skipped", 0)  # not counted before November 2026
    for name in _POSITION:
        setattr(engine, name, checkpoint.state[name])


def _gather_rng(engine: Engine) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The generators of every process, its tensors as `rng|<rank>|<device>`."""
    told = engine.world.gather(rng_state())
    tensors = {f"rng|{rank}|{name}": tensor for rank, (own, _) in enumerate(told) for name, tensor in own.items()}
    return tensors, [plain for _, plain in told]


def _restore_own_rng(engine: Engine, checkpoint: Checkpoint) -> None:
    rank, saved = engine.world.rank, checkpoint.state["rng"]
    if rank >= len(saved):  # more processes than saved: this one begins a sequence of its own
        torch.manual_seed(seed_of(engine.manifest.seed.order, "dropout", rank, checkpoint.step))
        return
    mark = f"rng|{rank}|"
    own = {name.removeprefix(mark): t for name, t in checkpoint.optimizer.items() if name.startswith(mark)}
    restore_rng(own, saved[rank])


def _check_origin(engine: Engine, checkpoint: Checkpoint, path: Path) -> list[str]:
    """Warnings about a checkpoint that this engine may go on from.

    Raises DataError when it is another run's, or when the data have changed.
    """
    state = checkpoint.state
    if state["run_hash"] != run_hash(engine.manifest, engine.parent):
        raise DataError(f"{path}: was written by another manifest (run hash {state['run_hash'][:8]})")
    if state["data"] != engine.corpus.fingerprint:
        raise DataError(f"{path}: was trained on other data than {engine.manifest.data.source} now holds")
    if state["machine"] == _machine(engine):
        return []
    was, now = (", ".join(f"{k} {v}" for k, v in m.items()) for m in (state["machine"], _machine(engine)))
    return [f"saved under {was}; resumed under {now}: equivalent, but not to the bit"]


def _check_branch(engine: Engine, checkpoint: Checkpoint) -> None:
    """Raises ManifestError where the engine cannot begin with a checkpoint of another run; its model may not differ."""
    optim, total = engine.manifest.optim, engine.total_steps
    kind = type(optim).kind
    if checkpoint.state["optim"] != kind:
        message = f"the run that this begins with was trained by {checkpoint.state['optim']}, not by {kind}"
        raise ManifestError([Fault("", "optim.kind", message)])
    _check_kept(engine, checkpoint)
    if total is not None and total <= checkpoint.step:
        message = f"ends at step {total}, but the run begins at step {checkpoint.step} of another"
        raise ManifestError([Fault("", "train.budget", message)])


def _check_kept(engine: Engine, checkpoint: Checkpoint) -> None:
    """Raises ManifestError where the optimizer or the pruning keeps other things than those of the checkpoint did."""
    own = {name: tuple(tensor.shape) for name, tensor in engine.tallies.own.items()}
    kept = {n.removeprefix(_OWN): tuple(t.shape) for n, t in checkpoint.optimizer.items() if n.startswith(_OWN)}
    others = ("rng|", _OWN, *MARKS)
    moments = {n.rpartition("|")[2] for n in checkpoint.optimizer if not n.startswith(others) and not is_average(n)}
    if own != kept or moments != kept_by(engine.manifest.optim):
        message = "the optimizer of the run that this begins with keeps other state; expected the same [optim] section"
        raise ManifestError([Fault("", "optim", message)])
    before, now = (state.get("section") for state in (checkpoint.state.get("pruning", {}), engine.pruning.state_dict()))
    if before and before != now:
        message = f"the run that this begins with prunes its weights by {before}; expected the same [prune] section"
        raise ManifestError([Fault("", "prune", message)])


def kept_by(optim: Any) -> set[str]:
    """Names of what an optimizer of this section keeps of a parameter, found by a step on small ones."""
    weights = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    optimizer = optim.build([Group(("w",), weights[:1], 0.0, True), Group(("b",), weights[1:], 0.0)])
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return {key for state in optimizer.state.values() for key in state}


def _model_tensors(engine: Engine) -> dict[str, Tensor]:
    """What is kept of the model, by name: fp32 masters where there are any, and buffers."""
    return {**engine.model.state_dict(), **engine.precision.masters}


def _optimized_names(engine: Engine) -> list[str]:
    """Parameter names in the order in which the optimizer numbers them."""
    return list(itertools.chain.from_iterable(group.names for group in engine.groups))


def _machine(engine: Engine) -> dict[str, object]:
    """What must be equal for equal bits."""
    kind = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu"
    threads = torch.get_num_threads()
    return {"device": kind, "processes": engine.world.size, "torch": torch.__version__, "threads": threads}
