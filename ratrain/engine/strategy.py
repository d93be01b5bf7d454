"""Chooses how a run is divided among its processes, and divides the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ratrain.config.schema import Manifest
from ratrain.errors import Fault, ManifestError
from ratrain.machine.distributed import World
from ratrain.machine.sharding import Sharding, divisible, mesh_of
from ratrain.model.gpt2 import GPT2
from ratrain.recipe.groups import group_parameters

_SHARE = 0.5  # of a device's memory that the state of DDP may fill; the rest is for activations


def arranged(world: World, manifest: Manifest, device: torch.device) -> World:
    """Returns `world` with a mesh if its processes may divide the model; all must call it together.

    Raises ManifestError on rank 0, FollowedError on the others, if the manifest asks for what cannot be had.
    """
    world.lead(lambda: _check(world, manifest))
    if world.size == 1 or manifest.parallel.strategy == "ddp" or list(_faults(world, manifest)):
        return world
    return replace(world, mesh=mesh_of(manifest.parallel.replicas, device))


def divide(world: World, manifest: Manifest, model: GPT2, device: torch.device) -> World:
    """Returns `world` with the model divided in place if the strategy is FSDP. Needs no communication."""
    if world.mesh is None or strategy_of(manifest, model, device) == "ddp":
        return world
    full, bf16 = manifest.parallel.shard == "full", manifest.train.precision == "bf16"
    names = divisible(model, _decayed(model))
    return replace(world, sharding=Sharding.of(model, names, mesh=world.mesh, full=full, bf16=bf16))


def strategy_of(manifest: Manifest, model: GPT2, device: torch.device) -> str:
    """Returns "ddp" or "fsdp": for "auto", fsdp where the whole state would fill most of a GPU."""
    if manifest.parallel.strategy != "auto":
        return manifest.parallel.strategy
    if device.type == "cpu":
        return "ddp"
    room = torch.cuda.get_device_properties(device).total_memory
    return "fsdp" if state_bytes(manifest, model, size=1) > _SHARE * room else "ddp"


def state_bytes(manifest: Manifest, model: GPT2, *, size: int) -> int:
    """Returns the bytes of weights, gradients and optimizer state on each of `size` processes that divide them.

    Of size 1: those of a process that holds all, as with DDP. Beside them FSDP gathers a block and the tables at a
    time.
    """
    divided = set(divisible(model, _decayed(model)))
    copies = 4 if manifest.train.precision in ("bf16", "fp8") else 0  # bf16 weights and their gradients
    total = 0
    for name, parameter in model.named_parameters():
        each = 4 * (2 + type(manifest.optim).held) + copies
        total += each * parameter.numel() // (size if name in divided else 1)
    return total


def _decayed(model: GPT2) -> set[str]:
    return {name for group in group_parameters(model, 1.0) if group.matrices for name in group.names}


def _check(world: World, manifest: Manifest) -> None:
    parallel = manifest.parallel
    if parallel.strategy != "fsdp" and parallel.replicas > 1:
        raise ManifestError([Fault("", "parallel.replicas", 'needs parallel.strategy = "fsdp"')])
    if parallel.strategy == "fsdp" and (faults := list(_faults(world, manifest))):
        raise ManifestError(faults)


def _faults(world: World, manifest: Manifest) -> Iterator[Fault]:
    """Yields why a run cannot be divided by FSDP."""
    parallel, optim = manifest.parallel, manifest.optim
    if world.size == 1:
        yield Fault("", "parallel.strategy", "fsdp needs several processes: ratrain --devices N, or torchrun")
    elif world.size % parallel.replicas or world.size == parallel.replicas:
        what = f"{parallel.replicas} does not leave two or more processes for each replica of {world.size} processes"
        yield Fault("", "parallel.replicas", what)
    if manifest.train.precision == "fp8":
        yield Fault("", "train.precision", "fp8 cannot be divided by FSDP; expected fp32, bf16 or amp_bf16")
    if manifest.compile.scope == "model":
        yield Fault("", "compile.scope", "FSDP gathers each block before its graph; expected auto, block or off")
    if not optim.divisible:
        what = f"{type(optim).kind} reads whole gradients, which FSDP divides; expected another kind, or ddp"
        yield Fault("", "optim.kind", what)
