"""What a checkpoint holds of a run, and how it is put back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ratrain.config.identity import run_hash
from ratrain.engine.checkpoint import Checkpoint, flatten_optimizer, require_same_tensors, restore_optimizer
from ratrain.engine.rng import restore_rng, rng_state
from ratrain.errors import DataError

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine

# positions and counts of the engine that decide what comes next
_POSITION = ("spent_seconds", "skips_in_a_row", "last_loss", "evaluated_at")


def snapshot(engine: Engine) -> Checkpoint:
    """Everything that the rest of the run depends on."""
    optimizer, plain = flatten_optimizer(engine.train_step.optimizer, _optimized_names(engine))
    rng, rng_plain = rng_state()
    state = {
        "run_hash": run_hash(engine.manifest),
        "data": engine.corpus.fingerprint,
        "machine": _machine(engine),
        "optimizer": plain,
        "rng": rng_plain,
        **{name: getattr(engine, name) for name in _POSITION},
    }
    return Checkpoint(engine.steps_done, _model_tensors(engine), optimizer | rng, state)


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's weights, optimizer, generators and position back."""
    require_same_tensors(_model_tensors(engine), checkpoint)
    with torch.no_grad():
        for name, tensor in _model_tensors(engine).items():
            tensor.copy_(checkpoint.model[name])
    engine.precision.publish()
    rng = {name: tensor for name, tensor in checkpoint.optimizer.items() if name.startswith("rng|")}
    moments = {name: tensor for name, tensor in checkpoint.optimizer.items() if name not in rng}
    restore_optimizer(engine.train_step.optimizer, _optimized_names(engine), moments, checkpoint.state["optimizer"])
    restore_rng(rng, checkpoint.state["rng"])
    engine.steps_done = checkpoint.step
    for name in _POSITION:
        setattr(engine, name, checkpoint.state[name])


def check_origin(engine: Engine, checkpoint: Checkpoint, path: Path) -> list[str]:
    """Warnings about a checkpoint that this engine may go on from.

    Raises DataError when it is another run's, or when the data have changed.
    """
    state = checkpoint.state
    if state["run_hash"] != run_hash(engine.manifest):
        raise DataError(f"{path}: was written by another manifest (run hash {state['run_hash'][:8]})")
    if state["data"] != engine.corpus.fingerprint:
        raise DataError(f"{path}: was trained on other data than {engine.manifest.data.source} now holds")
    if state["machine"] == _machine(engine):
        return []
    was, now = (", ".join(f"{k} {v}" for k, v in m.items()) for m in (state["machine"], _machine(engine)))
    return [f"saved under {was}; resumed under {now}: equivalent, but not to the bit"]


def _model_tensors(engine: Engine) -> dict[str, Tensor]:
    """What is kept of the model, by name: fp32 masters where there are any, and buffers."""
    return {**engine.model.state_dict(), **engine.precision.masters}


def _optimized_names(engine: Engine) -> list[str]:
    """Parameter names in the order in which the optimizer numbers them."""
    return list(itertools.chain.from_iterable(group.names for group in engine.groups))


def _machine(engine: Engine) -> dict[str, object]:
    """What must be equal for equal bits."""
    kind = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu"
    return {"device": kind, "torch": torch.__version__, "threads": torch.get_num_threads()}
