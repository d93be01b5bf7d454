"""Weight pruning of a run: schedules mask updates, publishes them, saves masks, and examines the result at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratrain.config.resolve import steps_total
from ratrain.engine.assembly import assemble
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.parts.part import Part, Position, Readings
from ratrain.engine.setup import Setup
from ratrain.errors import Fault, ManifestError
from ratrain.events import Pruned, PruningBegan, PruningEvaluated
from ratrain.machine.attention import pin
from ratrain.machine.compile import compile_model
from ratrain.machine.device import peak_memory
from ratrain.recipe.prune.masks import bytes_as_rows, unpack
from ratrain.recipe.prune.pruner import EMBEDDING, MARKS, Pruner, masks_of
from ratrain.recipe.prune.schedule import PruneSchedule
from ratrain.storage.checkpoint import listed, load

_AT_TARGET = 1e-3  # sparsity below the target that still counts as at the target


class Pruning(Part):
    """Prunes weights by the manifest's [prune] section; without one it does nothing."""

    key = "pruning"
    marks = MARKS

    def __init__(self, setup: Setup):
        self._setup, self._section = setup, setup.manifest.prune
        self.pruner = next((hook for hook in setup.step.hooks if isinstance(hook, Pruner)), None)
        self._schedule = (
            PruneSchedule(self._section, total_steps=steps_total(setup.manifest)) if self._section else None
        )
        self._looks: list[Pruned] = []  # since the last window
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # per step, in windows with and without looks
        self.best: dict[str, float | None] = {"dense": None, "target": None}  # losses

    def begin(self) -> Iterator[PruningBegan]:
        if self.pruner and self._section:
            names, parameters = tuple(self.pruner.names), self._setup.cost.parameters
            yield PruningBegan(self._section.kind, names, self.pruner.weights, parameters)

    def before_step(self, after: Position) -> None:
        """Schedules a mask update in the coming step when one is due."""
        if self.pruner and self._schedule and self._schedule.due(after.step, after.spent, self.pruner.reached):
            sparsity = self._schedule.sparsity(after.step, after.spent)
            last = self._schedule.progress(after.step, after.spent) >= 1
            self.pruner.expect(sparsity, last=last)
            pruned = self.pruner.count(sparsity)
            self._looks.append(Pruned(after.step, pruned / self.pruner.weights, pruned, last))

    def window_fields(self) -> dict[str, float]:
        return {"sparsity": self.sparsity}

    def after_window(self, now: Position, window: Readings) -> Iterator[Pruned]:
        """Publishes each mask update of the window. Raises RuntimeError if the masks of the processes differ."""
        if self.pruner is None:
            return
        world = self._setup.world
        self._seconds[bool(self._looks)].append(window.seconds / len(window.losses))
        if self._looks and world.size > 1 and len(set(world.gather(self.pruner.digest()))) > 1:
            raise RuntimeError("processes have pruned different weights: their weights or moments are not the same")
        yield from self._looks
        self._looks = []

    def after_evaluation(self, now: Position, loss: float) -> tuple[()]:
        """Records the best validation loss at zero sparsity, and at the target sparsity."""
        if self.pruner and self._section:
            dense, target = self.sparsity == 0, self.sparsity >= self._section.target - _AT_TARGET
            for name in ["dense"] * dense + ["target"] * target:
                best = self.best[name]
                self.best[name] = loss if best is None else min(best, loss)
        return ()

    def finish(self, now: Position) -> Iterator[PruningEvaluated]:
        if self.pruner and self._section:
            with self._setup.phases.timed("examine"):
                found = self._examine(now.step)
            yield found

    @property
    def sparsity(self) -> float:
        return self.pruner.sparsity if self.pruner else 0.0

    @property
    def step_seconds(self) -> dict[str, float | None]:
        """Median seconds per step of this session, in windows with and without mask updates."""
        names = {"with looks": True, "without": False}
        return {name: statistics.median(s) if (s := self._seconds[key]) else None for name, key in names.items()}

    def apply(self) -> None:
        """Sets the pruned weights to zero."""
        if self.pruner and self.pruner.pruned:
            self.pruner.apply()

    # -- in a checkpoint ------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        return self.pruner.tensors() if self.pruner else {}

    def state(self) -> dict[str, Any]:
        return {**self.pruner.state_dict(), "best": self.best} if self.pruner else {}

    def check_parent(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        before, now = (kept.get("section") for kept in (state, self.state()))
        if before and before != now:
            message = f"the parent run prunes its weights by {before}; expected the same [prune] section"
            raise ManifestError([Fault("", "prune", message)])

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores masks and best losses; after a checkpoint of a run without pruning, no weight is masked."""
        if self.pruner and state:
            self.pruner.restore(tensors, state)
            self.best = dict(state["best"])

    # -- at the end -----------------------------------------------------------------------------------------------

    def _examine(self, step: int) -> PruningEvaluated:
        """Counts zero weights, and evaluates the newest checkpoint, masked, in a model without pruning.

        Called on every process, after the checkpoint of the last step is written.
        """
        pruner, section, masters = self.pruner, self._section, self._setup.precision.masters
        assert pruner and section
        peak = peak_memory(self._setup.device)  # before the second model is built
        looked_at = dict.fromkeys([*pruner.names, EMBEDDING])
        zeros = {name: self._count(name, masters[name] == 0) for name in looked_at}
        alive = sum(self._count(name, masters[name].detach()[~mask] != 0)[0] for name, mask in pruner.masks())
        packed = (4 * (n - z) + -(-n // 8) if name in pruner.names else 4 * n for name, (z, n) in zeros.items())
        return PruningEvaluated(
            step=step,
            target=section.target,
            sparsity=pruner.pruned / pruner.weights,
            zeros=zeros,
            pruned=pruner.names,
            reached=pruner.reached,
            not_zero=alive,
            loss_dense_best=self.best["dense"],
            loss_target_best=self.best["target"],
            loss=self._setup.evaluator(),
            loss_reloaded=_reloaded(self._setup),
            peak_memory=peak,
            step_seconds=self.step_seconds,
            bytes_dense=sum(4 * n for _, n in zeros.values()),
            bytes_packed=sum(packed),
        )

    def _count(self, name: str, found: Tensor) -> tuple[int, int]:
        """Counts the true values among those of weight `name`, on all processes that divide it; and all values."""
        count = torch.stack([found.sum(), torch.tensor(found.numel(), device=found.device)])
        if (sharding := self._setup.world.sharding) and name in sharding.parameters:
            count = sharding.sum(count)
        true, every = count.tolist()
        return true, every


def _reloaded(setup: Setup) -> float:
    """Returns the validation loss of the newest checkpoint's weights and masks, in a model without a pruner."""
    path = setup.world.share(listed(setup.checkpoints)[0] if setup.world.leads else Path())
    checkpoint, manifest = load(path), setup.manifest.model_copy(update={"prune": None})
    made = assemble(manifest, setup.device, micro_batch=setup.step.micro_batch)
    masks = masks_of(checkpoint.optimizer)
    with torch.no_grad():
        for name, tensor in {**made.model.state_dict(), **made.precision.masters}.items():
            tensor.copy_(checkpoint.model[name])
            if name in masks:
                tensor.mul_(unpack(masks[name].to(tensor.device), tensor.shape, bytes_as_rows(tensor.device)))
    made.precision.publish()
    if setup.attention:
        pin(made.model, setup.attention, strict=manifest.compile.strict)
    compile_model(made.model, manifest.compile)
    windows, batch = setup.evaluator.windows, setup.evaluator.batch
    return Evaluator(made.model, windows, precision=made.precision, batch=batch, world=setup.world)()
