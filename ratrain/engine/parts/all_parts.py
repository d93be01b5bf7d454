"""The list of parts of a run, in the order in which the engine calls them."""

from __future__ import annotations

from ratrain.config.resolve import steps_total
from ratrain.engine.parts.activation import Switchboard
from ratrain.engine.parts.average import Average
from ratrain.engine.parts.fitting import Fitting
from ratrain.engine.parts.optimizer_counts import Tallies
from ratrain.engine.parts.part import Part
from ratrain.engine.parts.probes import Probes
from ratrain.engine.parts.pruning import Pruning
from ratrain.engine.setup import Setup


def parts_of(setup: Setup) -> list[Part]:
    """Returns every part, also unused ones: a checkpoint may hold tensors of each."""
    manifest, model = setup.manifest, setup.model
    pruning = Pruning(setup)
    switchboard = Switchboard(manifest, model, total_steps=steps_total(manifest))
    observing = setup.evaluator if setup.world.leads or setup.world.sharding else None
    return [
        Average(setup.precision, manifest.eval.ema, pruning.apply),  # first: the probes observe the averaged weights
        Probes(model, setup.step, on=manifest.log.probes, evaluator=observing),
        pruning,
        Tallies(setup.step.optimizer),
        switchboard,
        Fitting(setup, switchboard.is_open),
    ]
