"""Trains every distinct variant for two steps, once alone and once divided among two processes by FSDP.

`python divided.py [NAME ...]`: names of manifests (default: all shipped ones). In the second step all mechanisms are
on. Everything is in float64, in which the order of a sum hardly shows. Prints, as JSON by name, the largest relative
difference of losses and of saved weights, or why the variant was refused.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.engine.engine import Engine
from ratrain.engine.strategy import arranged
from ratrain.errors import RatrainError
from ratrain.events import Evaluated, Window
from ratrain.machine.distributed import World, join
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.dry_run import two_steps
from ratrain.storage.checkpoint import listed, load

CPU = torch.device("cpu")
DIVIDED = {"strategy": "fsdp"}


def manifest_of(file: str):
    keys = ["compile.scope=off", "eval.ema=0.5", "train.precision=fp32"]
    source = read_source(Path(file), scale="tiny", overrides=keys)
    return two_steps(resolve(source, patches=patch_kinds(), optimizers=optim_kinds()))


def trained(manifest, folder: Path, world: World) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses, on rank 0, and the tensors of the last checkpoint."""
    losses: list[float] = []

    def listen(event):
        losses.extend(
            event.losses if isinstance(event, Window) else [event.loss] if isinstance(event, Evaluated) else []
        )

    Engine(manifest, checkpoints=folder, device=CPU, emit=listen, world=world).run()
    found = load(listed(folder)[0])
    kept = {name: t for name, t in found.optimizer.items() if not name.startswith("rng|")}
    return losses, {**found.model, **kept}


def difference(alone, shared) -> float:
    pairs = list(zip(map(torch.tensor, alone[0]), map(torch.tensor, shared[0]), strict=True))
    assert alone[1].keys() == shared[1].keys(), alone[1].keys() ^ shared[1].keys()
    pairs += [(tensor.double(), shared[1][name].double()) for name, tensor in alone[1].items()]
    assert all(a.shape == b.shape for a, b in pairs)
    finite = [(a, b) for a, b in pairs if a.numel()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in finite)


def compared(world: World, file: str, folder: Path) -> float | str:
    manifest = manifest_of(file)
    divided = manifest.model_copy(update={"parallel": manifest.parallel.model_copy(update=DIVIDED)})
    alone = world.lead(lambda: trained(manifest, folder / "alone", World()))
    try:
        shared = trained(divided, folder / "shared", arranged(world, divided, CPU))
    except RatrainError as error:
        return f"{type(error).__name__}: {error}"
    return difference(alone, shared) if alone else 0.0


def member(files: list[str], root: Path) -> None:
    with join(CPU) as world:
        found = {file: compared(world, file, root / str(number)) for number, file in enumerate(files)}
    if world.leads:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1], WORLD_SIZE="2")
    with tempfile.TemporaryDirectory() as root:
        child = os.fork()
        os.environ["RANK"] = str(int(child != 0))
        member(sys.argv[2:], Path(root))
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
