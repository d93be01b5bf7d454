"""The pruning of a run's weights: asked for when it is due, told of, kept over a restart, and examined at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ratrain.config.schema import Manifest
from ratrain.engine.attention import pin
from ratrain.engine.checkpoint import Checkpoint, listed, load
from ratrain.engine.compile import compile_model
from ratrain.engine.device import peak_memory
from ratrain.engine.distributed import World
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.step import Precision, TrainStep
from ratrain.events import Pruned, PruningBegan, PruningEvaluated
from ratrain.model.build import build
from ratrain.recipe.prune.masks import bytes_as_rows, unpack
from ratrain.recipe.prune.pruner import EMBEDDING, masks_of
from ratrain.recipe.prune.schedule import PruneSchedule

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine

_AT_TARGET = 1e-3  # below it


class Pruning:
    """What the manifest's [prune] section asks for; without one it does nothing."""

    def __init__(self, manifest: Manifest, step: TrainStep, *, total_steps: int | None):
        self.pruner, self._section = step.pruner, manifest.prune
        self._schedule = PruneSchedule(manifest.prune, total_steps=total_steps) if manifest.prune else None
        self._looks: list[Pruned] = []  # since the last window
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of a step, in windows with and without looks
        self.best: dict[str, float | None] = {"dense": None, "target": None}  # losses

    def began(self, parameters: int) -> PruningBegan | None:
        """Which weights it is about."""
        if not (self.pruner and self._section):
            return None
        return PruningBegan(self._section.kind, tuple(self.pruner.names), self.pruner.weights, parameters)

    def expect(self, step: int, spent: float) -> None:
        """Said before each step, counted from 1, after which `spent` of the budget is used."""
        if self.pruner and self._schedule and self._schedule.due(step, spent, self.pruner.reached):
            sparsity, last = self._schedule.sparsity(step, spent), self._schedule.progress(step, spent) >= 1
            self.pruner.expect(sparsity, last=last)
            pruned = self.pruner.count(sparsity)
            self._looks.append(Pruned(step, pruned / self.pruner.weights, pruned, last))

    def told(self, world: World, steps: int, seconds: float) -> Iterator[Pruned]:
        """Of each look in a window of so many steps; all processes must have come to the same masks."""
        if self.pruner is None:
            return
        self._seconds[bool(self._looks)].append(seconds / steps)
        if self._looks and world.size > 1 and len(set(world.gather(self.pruner.digest()))) > 1:
            raise RuntimeError("processes have pruned different weights: their weights or moments are not the same")
        yield from self._looks
        self._looks = []

    def evaluated(self, loss: float) -> None:
        """Hears of every validation loss, so that the best of each kind is known."""
        if self.pruner and self._section:
            dense, target = self.sparsity == 0, self.sparsity >= self._section.target - _AT_TARGET
            for name in ["dense"] * dense + ["target"] * target:
                best = self.best[name]
                self.best[name] = loss if best is None else min(best, loss)

    @property
    def sparsity(self) -> float:
        return self.pruner.sparsity if self.pruner else 0.0

    @property
    def step_seconds(self) -> dict[str, float | None]:
        """Medians of this session: of windows in which masks were made anew, and of the others."""
        names = {"with looks": True, "without": False}
        return {name: statistics.median(s) if (s := self._seconds[key]) else None for name, key in names.items()}

    def apply(self) -> None:
        """Zeros in the weights where they are pruned."""
        if self.pruner and self.pruner.pruned:
            self.pruner.apply()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, beside `state_dict`."""
        return self.pruner.tensors() if self.pruner else {}

    def state_dict(self) -> dict[str, Any]:
        return {**self.pruner.state_dict(), "best": self.best} if self.pruner else {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """From the checkpoint of a run that prunes alike; one that prunes nothing leaves all weights in."""
        if self.pruner and (state := checkpoint.state.get("pruning")):
            self.pruner.restore(checkpoint.optimizer, state)
            self.best = dict(state["best"])


def examine(engine: Engine) -> PruningEvaluated:
    """What a finished run that prunes really has: zeros counted in its weights, and the newest checkpoint read into a
    model that knows of no pruning, masked, and evaluated on the same windows.

    Called on every process, with the checkpoint of the last step written.
    """
    pruner, section, masters = engine.train_step.pruner, engine.manifest.prune, engine.precision.masters
    assert pruner and section
    peak = peak_memory(engine.device)  # before there is a second model
    looked_at = dict.fromkeys([*pruner.names, EMBEDDING])
    zeros = {name: (int((masters[name] == 0).sum()), masters[name].numel()) for name in looked_at}
    alive = sum(int((masters[name].detach()[~mask] != 0).sum()) for name, mask in pruner.masks())
    final, reloaded = engine.evaluator(), _reloaded(engine)
    return PruningEvaluated(
        step=engine.steps_done,
        target=section.target,
        sparsity=pruner.pruned / pruner.weights,
        zeros=zeros,
        pruned=pruner.names,
        reached=pruner.reached,
        not_zero=alive,
        loss_dense_best=engine.pruning.best["dense"],
        loss_target_best=engine.pruning.best["target"],
        loss=final,
        loss_reloaded=reloaded,
        peak_memory=peak,
        step_seconds=engine.pruning.step_seconds,
        bytes_dense=sum(4 * n for _, n in zeros.values()),
        bytes_packed=sum(4 * (n - z) + -(-n // 8) if name in pruner.names else 4 * n for name, (z, n) in zeros.items()),
    )


def _reloaded(engine: Engine) -> float:
    """Validation loss of the weights on disk, with the masks on disk, in a model that is not pruned."""
    path = engine.world.share(listed(engine.checkpoints)[0] if engine.world.leads else Path())
    checkpoint, manifest = load(path), engine.manifest.model_copy(update={"prune": None})
    model = build(manifest, device=engine.device)
    precision = Precision(manifest.train.precision, model)
    masks = masks_of(checkpoint.optimizer)
    with torch.no_grad():
        for name, tensor in {**model.state_dict(), **precision.masters}.items():
            tensor.copy_(checkpoint.model[name])
            if name in masks:
                tensor.mul_(unpack(masks[name].to(tensor.device), tensor, bytes_as_rows(tensor.device)))
    precision.publish()
    if engine.attention:
        pin(model, engine.attention, strict=manifest.compile.strict)
    compile_model(model, manifest.compile)
    windows, batch = engine.evaluator.real_windows, engine.evaluator.batch
    return Evaluator(model, windows, precision=precision, batch=batch, world=engine.world)()
