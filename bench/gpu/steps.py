"""Whole train steps of every variant at GPT-2 124M on a GPU, in rounds with V0; needs the package's dependencies."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.gpu.ledger import fault
from bench.manifests import manifest_of
from ratrain.config.catalogue import catalogue
from ratrain.config.schema import Manifest
from ratrain.engine.assembly import train_step
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import peak_flops, peak_memory, synchronize
from ratrain.model.count import count
from ratrain.profile.paired_timing import Ratio, interleave

BASE = "unified_ra_v0"
# over V0's step: the design's targets on an H200
TARGET = {"unified_ra_v1": 1.01, "tied_ra": 1.08, "unified_ra_v19": 1.10}
NAMES = [
    Path(entry.file).stem
    for entry in catalogue()
    if entry.same_as is None and not {"ideas", "prune", "legacy"} & {*Path(entry.file).parts}
    and not entry.id.startswith(("gpt2", "modern", "aa_", "c"))
]  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Settings common to all variants: `keys` override each manifest."""

    device: str
    scale: str
    keys: tuple[str, ...]
    rounds: int


FULL = Recipe(
    "cuda", "gpt2_124m", ("train.batch=16", "train.micro_batch=16", "train.precision=bf16", "compile.scope=block"), 8
)
REHEARSAL = Recipe("cpu", "tiny", ("compile.scope=off",), 2)


@dataclass
class Stepping:
    """A variant ready to step; each call takes other tokens, and returns their loss."""

    step: Callable[[], torch.Tensor]
    tokens: int  # per step
    flops: int  # of training, per token; 0 if not known
    memory: int  # peak bytes during its first steps


def stepping(name: str, recipe: Recipe) -> Stepping:
    """Returns the manifest's train step, compiled and warm. Tokens are random: the cost does not depend on them."""
    device = torch.device(recipe.device)
    manifest = manifest_of(name, scale=recipe.scale, overrides=recipe.keys)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model, step = train_step(manifest, lr=1e-4, device=recipe.device)
    once = warmed(lambda tokens, targets: step(tokens, targets).loss, manifest, device)
    tokens = manifest.train.batch * manifest.model.block_size
    return Stepping(once, tokens, count(model).train_flops_per_token, peak_memory(device) - before)


def warmed(
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], manifest: Manifest, device: torch.device
) -> Callable[[], torch.Tensor]:
    """Returns the step on random tokens and targets, after three calls."""
    generator = torch.Generator(device).manual_seed(0)
    shape = manifest.train.batch, manifest.model.block_size + 1

    def once() -> torch.Tensor:
        tokens = torch.randint(manifest.model.vocab_size, shape, generator=generator, device=device)
        return step(tokens[:, :-1], tokens[:, 1:])

    for _ in range(3):
        once()
    synchronize(device)
    return once


def warm(task: tuple[str, Recipe]) -> tuple[str, str]:
    """Compiles a variant into the cache of later processes; returns its name and the error, if any."""
    name, recipe = task
    keep_compiled_code()
    try:
        stepping(name, recipe)
    except Exception as error:
        return name, fault(error)
    return name, ""


def time_steps(names: list[str], recipe: Recipe, *, deadline: float) -> Iterator[dict[str, Any]]:
    """Yields a row per variant: milliseconds, ratio to V0 in the same rounds, tokens/s, MFU, memory.

    V0 and one other at a time are in memory. A variant that fails, or is not compiled by `deadline` (time.monotonic),
    is not timed; its row has the reason.
    """
    keep_compiled_code()
    compiled = dict(_warmed([BASE, *(name for name in names if name != BASE)], recipe, deadline))
    yield from ({"variant": name, "why": why} for name, why in compiled.items() if why)
    if compiled[BASE]:
        return
    base = stepping(BASE, recipe)
    peak = peak_flops(torch.device(recipe.device), "fp32" if recipe.device == "cpu" else "bf16")
    yield from _beside(f"{BASE} again", base, base, recipe, peak)
    for name in (name for name in names if name != BASE and not compiled[name]):
        if time.monotonic() > deadline:
            yield {"variant": name, "why": "not timed in time"}
            continue
        try:
            yield from _beside(name, stepping(name, recipe), base, recipe, peak)
        except Exception as error:
            yield {"variant": name, "why": fault(error)}
        gc.collect()
        if recipe.device != "cpu":
            torch.cuda.empty_cache()


def _beside(
    name: str, one: Stepping, base: Stepping, recipe: Recipe, peak: dict[str, float | None]
) -> Iterator[dict[str, Any]]:
    seconds = in_rounds({BASE: base.step, name: one.step}, recipe.device, recipe.rounds)
    ratio, median = Ratio.of(seconds[name], seconds[BASE]), statistics.median(seconds[name])
    rate = one.tokens / median
    mfu = {f"mfu_{kind}": round(one.flops * rate / top, 3) for kind, top in peak.items() if top}
    row = {"variant": name, "ms": round(1e3 * median, 3), "ratio": round(ratio.median, 4), "low": round(ratio.low, 4)}
    row |= {"high": round(ratio.high, 4), "rounds": len(seconds[name]), "tokens_per_s": round(rate), **mfu}
    row |= {"peak_MiB": one.memory >> 20}
    if (target := TARGET.get(name)) is not None:
        row |= {"target": target, "met": ratio.median <= target}
    yield row


def _warmed(names: list[str], recipe: Recipe, deadline: float) -> Iterator[tuple[str, str]]:
    if recipe.device == "cpu":
        yield from (warm((name, recipe)) for name in names)
        return
    with ProcessPoolExecutor(5, mp_context=get_context("spawn")) as pool:
        found = [(name, pool.submit(warm, (name, recipe))) for name in names]
        for name, future in found:
            try:
                yield future.result(timeout=max(0.1, deadline - time.monotonic()))
            except TimeoutError:
                yield name, "not compiled in time"
        pool.shutdown(wait=False, cancel_futures=True)


def in_rounds(steps: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each step, by round: the mean of its two turns, in order and in reverse order."""
    return interleave({name: partial(_seconds, step, device) for name, step in steps.items()}, rounds)


def _seconds(step: Callable[[], object], device: str) -> float:
    """Wall time of three steps on an idle device, per step: a step leaves before its work is done."""
    synchronize(torch.device(device))
    start = time.perf_counter()
    for _ in range(3):
        step()
    synchronize(torch.device(device))
    return (time.perf_counter() - start) / 3
