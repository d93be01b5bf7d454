"""A train step outside the engine, as the engine builds it: what every bench of steps measures."""

from __future__ import annotations

import torch

from ratrain.config.schema import CompileSection, Manifest
from ratrain.engine.attention import choose, pin
from ratrain.engine.compile import compile_model
from ratrain.engine.distributed import World
from ratrain.engine.step import Precision, TrainStep
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.recipe.groups import group_parameters


def train_step(
    manifest: Manifest,
    *,
    lr: float,
    device: str = "cpu",
    compiler: CompileSection | None = None,
    world: World = World(),  # noqa: B008 - frozen
) -> tuple[GPT2, TrainStep]:
    """The manifest's model and its step, compiled as `compiler` says, else as the manifest does."""
    place = torch.device(device)
    model = build(manifest, device=place)
    attention = choose(manifest, rows=manifest.train.micro_batch, device=place)
    pin(model, attention, strict=manifest.compile.strict)
    compile_model(model, compiler or manifest.compile)
    step = TrainStep(
        model,
        manifest.optim,
        groups=group_parameters(model, manifest.optim.weight_decay),
        precision=Precision(manifest.train.precision, model),
        micro_batch=manifest.train.micro_batch,
        prune=manifest.prune,
        world=world,
    )
    step.set_lr(lr)
    return model, step
