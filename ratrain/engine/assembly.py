"""Assembles the model of a manifest with its optimizer step; no other module does so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ratrain.config.schema import CompileSection, Manifest
from ratrain.engine.step import Precision, TrainStep
from ratrain.machine.attention import choose, pin
from ratrain.machine.compile import compile_model
from ratrain.machine.distributed import World
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.model.recompute import recompute
from ratrain.recipe.groups import group_parameters
from ratrain.recipe.prune.pruner import Pruner


@dataclass(frozen=True)
class Assembly:
    """A model, its training precision and its optimizer step, not compiled yet."""

    model: GPT2
    precision: Precision
    step: TrainStep


def assemble(
    manifest: Manifest,
    device: torch.device | None = None,
    *,
    world: World = World(),  # noqa: B008 - frozen
    model: GPT2 | None = None,
    micro_batch: int | None = None,
) -> Assembly:
    """Assembles model, precision and optimizer step of `manifest` on `device` (default: the CPU).

    `model` replaces a newly built model, `micro_batch` replaces `train.micro_batch`. Raises the errors of `build`, and
    UnavailableError for a precision that the device does not support.
    """
    model = build(manifest, device=device or torch.device("cpu")) if model is None else model
    recompute(model, manifest.parallel.activation_checkpointing)
    precision = Precision(manifest.train.precision, model, world.sharding)
    step = TrainStep(
        model,
        manifest.optim,
        groups=group_parameters(model, manifest.optim.weight_decay),
        precision=precision,
        micro_batch=micro_batch or manifest.train.micro_batch,
        world=world,
    )
    if manifest.prune:
        step.hooks.append(Pruner(manifest.prune, step.groups, step.optimizer))
    return Assembly(model, precision, step)


def train_step(
    manifest: Manifest,
    *,
    lr: float,
    device: str = "cpu",
    compiler: CompileSection | None = None,
    world: World = World(),  # noqa: B008 - frozen
) -> tuple[GPT2, TrainStep]:
    """Returns the manifest's model and train step without a run, compiled by `compiler` or the manifest's [compile]."""
    place = torch.device(device)
    made = assemble(manifest, place, world=world)
    attention = choose(manifest, rows=manifest.train.micro_batch, device=place)
    pin(made.model, attention, strict=manifest.compile.strict)
    compile_model(made.model, compiler or manifest.compile)
    made.step.set_lr(lr)
    return made.model, made.step
