"""Builds the events RunStarted and Window from the objects of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ratrain import events
from ratrain.config.identity import plain, recipe_hash, run_hash
from ratrain.config.resolve import steps_total, tokens_per_step
from ratrain.engine.parts.part import Readings
from ratrain.engine.progress import Progress
from ratrain.engine.setup import Setup
from ratrain.machine.compile import GraphCounter
from ratrain.machine.device import environment, peak_memory
from ratrain.machine.distributed import World


def run_started(setup: Setup) -> events.RunStarted:
    """Returns the event with the model, the data, the budget, and the losses of n-gram models as baselines."""
    manifest, seed, cost = setup.manifest, setup.manifest.seed, setup.cost
    return events.RunStarted(
        id=manifest.id,
        title=manifest.title,
        scale=manifest.scale,
        folder=str(setup.checkpoints.parent),
        recipe_hash=recipe_hash(manifest),
        run_hash=run_hash(manifest, setup.parent),
        seed_init=seed.init,
        seed_data=seed.data,
        device=str(setup.device),
        processes=setup.world.size,
        precision=manifest.train.precision,
        parameters=cost.parameters,
        flops_per_token=cost.train_flops_per_token,
        kv_bytes_per_token=cost.kv_bytes_per_token(4 if manifest.train.precision == "fp32" else 2),
        train_tokens=setup.data.train_tokens,
        val_tokens=setup.data.val_tokens,
        budget=manifest.train.budget.model_dump(exclude_none=True),
        total_steps=steps_total(manifest),
        tokens_per_step=tokens_per_step(manifest),
        peak_flops=setup.peak,
        manifest=plain(manifest),
        environment=environment(setup.device),
        baselines=setup.data.baselines(setup.evaluator.windows),
    )


def window(
    setup: Setup, progress: Progress, readings: Readings, graphs: GraphCounter, fields: Mapping[str, float]
) -> events.Window:
    """Returns the event of the steps in `readings`; `fields` come from the parts (`Part.window_fields`)."""
    tokens = len(readings.losses) * tokens_per_step(setup.manifest)
    rate = tokens / readings.seconds
    flops = rate * setup.cost.train_flops_per_token / setup.world.size
    sheet, measured = setup.peak["datasheet"], setup.peak["measured"]
    spent, seconds = progress.now.spent, setup.phases.seconds
    overhead = sum(seconds.get(phase, 0.0) for phase in ("train", "evaluate", "fit", "save")) / seconds["train"]
    return events.Window(
        step=progress.steps,
        tokens=progress.steps * tokens_per_step(setup.manifest),
        spent=spent,
        losses=tuple(readings.losses),
        grad_norms=tuple(readings.norms),
        skipped=sum(not math.isfinite(norm) for norm in readings.norms),
        lr=setup.step.lr,
        seconds=readings.seconds,
        tokens_per_second=rate,
        mfu=flops / measured if measured else None,
        mfu_datasheet=flops / sheet if sheet else None,
        peak_memory=peak_memory(setup.device),
        graphs=graphs.graphs,
        recompiles=graphs.recompiles,
        eta=progress.spent_seconds / spent * (1 - spent) * overhead if spent else None,
        **fields,
    )


def heartbeats(world: World, progress: Progress) -> Iterator[events.Heartbeats]:
    """Yields what rank 0 has heard of all processes, once a minute."""
    if world.heartbeat and (heard := world.heartbeat.reading()):
        by_rank = [heard[rank] for rank in sorted(heard)]
        steps, silent = zip(*by_rank, strict=True)
        yield events.Heartbeats(progress.steps, steps, silent)
