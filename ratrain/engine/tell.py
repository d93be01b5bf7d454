"""What the engine says of itself: the events that take more than a line to put together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ratrain import events
from ratrain.config.identity import plain, recipe_hash, run_hash
from ratrain.config.resolve import tokens_per_step
from ratrain.engine.device import environment, peak_memory
from ratrain.recipe.data import ngram_losses

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine


def start(engine: Engine) -> None:
    """States what is about to be trained, and which of its mechanisms see the future."""
    engine.emit(started(engine))
    for name, patch in engine.manifest.patch.items():
        if patch.leaks:
            engine.emit(events.Notice(f"patch.{name} {events.NOT_CAUSAL}: {patch.leaks}", "warning"))


def started(engine: Engine) -> events.RunStarted:
    """What is about to be trained, on what, and what it is to be compared with."""
    manifest, seed = engine.manifest, engine.manifest.seed
    return events.RunStarted(
        id=manifest.id,
        title=manifest.title,
        scale=manifest.scale,
        folder=str(engine.checkpoints.parent),
        recipe_hash=recipe_hash(manifest),
        run_hash=run_hash(manifest, engine.parent),
        seed_init=seed.init,
        seed_data=seed.data,
        device=str(engine.device),
        processes=engine.world.size,
        precision=manifest.train.precision,
        parameters=engine.cost.parameters,
        flops_per_token=engine.cost.train_flops_per_token,
        kv_bytes_per_token=engine.cost.kv_bytes_per_token(4 if manifest.train.precision == "fp32" else 2),
        train_tokens=len(engine.corpus.train),
        val_tokens=len(engine.corpus.val),
        budget=manifest.train.budget.model_dump(exclude_none=True),
        total_steps=engine.total_steps,
        tokens_per_step=tokens_per_step(manifest),
        peak_flops=engine.peak,
        manifest=plain(manifest),
        environment=environment(engine.device),
        baselines=ngram_losses(engine.corpus, engine.evaluator.real_windows, manifest.model.vocab_size),
    )


def window(engine: Engine, losses: list[float], norms: list[float], seconds: float) -> events.Window:
    """The steps that were just done, in `seconds` of training."""
    tokens = len(losses) * tokens_per_step(engine.manifest)
    rate = tokens / seconds
    flops = rate * engine.cost.train_flops_per_token / engine.world.size
    sheet, measured = engine.peak["datasheet"], engine.peak["measured"]
    spent = engine.spent_after(0, engine.spent_seconds, engine.steps_done)
    return events.Window(
        step=engine.steps_done,
        tokens=engine.steps_done * tokens_per_step(engine.manifest),
        spent=spent,
        losses=tuple(losses),
        grad_norms=tuple(norms),
        skipped=sum(not math.isfinite(norm) for norm in norms),
        lr=float(engine.train_step.optimizer.param_groups[0]["lr"]),
        seconds=seconds,
        tokens_per_second=rate,
        mfu=flops / measured if measured else None,
        mfu_datasheet=flops / sheet if sheet else None,
        peak_memory=peak_memory(engine.device),
        graphs=engine.graphs.graphs,
        recompiles=engine.graphs.recompiles,
        sparsity=engine.pruning.sparsity,
        eta=engine.spent_seconds / spent * (1 - spent) * _overhead(engine) if spent else None,
    )


def _overhead(engine: Engine) -> float:
    """Wall time over training time: evaluations, fits and checkpoints, as they went so far."""
    seconds = engine.seconds
    return sum(seconds.get(phase, 0.0) for phase in ("train", "evaluate", "fit", "save")) / seconds["train"]
