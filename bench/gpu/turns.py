"""Steps of V0 and its rivals in turns, and the kernels of a step, of the first minutes on a GPU."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.costs.peers import load_code, their_step
from bench.gpu.ledger import fault
from bench.gpu.steps import BASE, Recipe, Stepping, in_rounds, stepping, warmed
from bench.manifests import manifest_of
from ratrain.machine.compile import keep_compiled_code
from ratrain.profile.paired_timing import Ratio

Row = dict[str, Any]
Makers = dict[str, Callable[[], Stepping]]
TWIN, NANO = f"{BASE} with 6 heads of 128", "nanoGPT"
_ROUNDS = 6


def steps(batch: int, small: bool) -> Iterator[Row]:
    """V0, its twin of 128-channel heads and nanoGPT, compiled, at one micro-batch of `batch` sequences, A B B A."""
    makers: Makers = {
        BASE: lambda: _ours((), batch, small),
        TWIN: lambda: _ours(("model.n_head=1" if small else "model.n_head=6",), batch, small),
    }
    if folder := os.environ.get("NANOGPT"):
        makers[NANO] = lambda: _nano(folder, batch, small)
    yield from _in_turns(makers, batch, small)


def whole(small: bool) -> Iterator[Row]:
    """V0 with one graph for the model against one graph per block."""
    yield from _against_v0("as one graph", "compile.scope=model", small)


def autotune(small: bool) -> Iterator[Row]:
    """V0 with tiles of its products chosen by timing, against torch's own choice; compiling them takes minutes."""
    yield from _against_v0("autotuned", "compile.autotune=true", small)


def _against_v0(name: str, key: str, small: bool) -> Iterator[Row]:
    makers: Makers = {BASE: lambda: _ours((), 32, small), f"{BASE} {name}": lambda: _ours((key,), 32, small)}
    yield from _in_turns(makers, 32, small)


def _in_turns(makers: Makers, batch: int, small: bool) -> Iterator[Row]:
    keep_compiled_code()
    ready: dict[str, Stepping] = {}
    for name, make in makers.items():
        begin = time.monotonic()
        try:
            one = make()
            loss = round(float(one.step()), 3)
        except Exception as error:
            yield {"arm": name, "batch": batch, "why": fault(error)}
            continue
        ready[name] = one
        yield {"arm": name, "batch": batch, "compiled_s": round(time.monotonic() - begin, 1), "loss": loss}
    count = 2 if small else _ROUNDS
    took = in_rounds({name: one.step for name, one in ready.items()}, "cpu" if small else "cuda", count)
    for name, seconds in took.items():
        one, middle = ready[name], statistics.median(seconds)
        row: Row = {"arm": name, "batch": batch, "ms": round(1e3 * middle, 2)}
        row["tokens_per_s"] = round(one.tokens / middle)
        if BASE in took:
            row["over_v0"] = round(Ratio.of(seconds, took[BASE]).median, 4)
        if one.flops:
            row["tflops"] = round(one.flops * one.tokens / middle / 1e12, 1)
        if not small:
            row["peak_MiB"] = torch.cuda.max_memory_allocated() >> 20
        yield row
    ready.clear()
    gc.collect()
    if not small:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _ours(keys: tuple[str, ...], batch: int, small: bool) -> Stepping:
    return stepping(BASE, _recipe(keys, batch, small))


def _recipe(keys: tuple[str, ...], batch: int, small: bool) -> Recipe:
    common = (f"train.batch={batch}", f"train.micro_batch={batch}")
    how = ("compile.scope=off",) if small else ("train.precision=bf16", "compile.scope=block")
    return Recipe("cpu" if small else "cuda", "tiny" if small else "gpt2_124m", (*common, *how, *keys), _ROUNDS)


def _nano(folder: str, batch: int, small: bool) -> Stepping:
    """nanoGPT's own model and optimizer as its train.py runs them: bf16 autocast, compiled whole, clipped."""
    recipe = _recipe((), batch, small)
    manifest = manifest_of(BASE, scale=recipe.scale, overrides=recipe.keys)
    step = their_step(manifest, load_code(Path(folder)), recipe.device, compiled=not small)
    once = warmed(lambda x, y: step(x.contiguous(), y.contiguous()), manifest, torch.device(recipe.device))
    return Stepping(once, batch * manifest.model.block_size, flops=0, memory=0)


def profile(small: bool, out: Path) -> Iterator[Row]:
    """The kernels of three steps of V0 by their time; all of them in profile.txt."""
    one = _ours((), 2 if small else 32, small)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not small:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        for _ in range(3):
            one.step()
        if not small:
            torch.cuda.synchronize()
    key = "self_cpu_time_total" if small else "self_device_time_total"
    found = sorted(((getattr(e, key) / 3e3, e.count / 3, e.key) for e in seen.key_averages()), reverse=True)
    lines = [f"{ms:9.3f} ms  {count:7.1f} x  {name[:150]}" for ms, count, name in found if ms > 0]
    (out / "profile.txt").write_text("\n".join(lines) + "\n")
    yield {
        "kernel": "all",
        "ms": round(sum(ms for ms, _, _ in found), 3),
        "launches": round(sum(n for _, n, _ in found)),
    }
    for ms, count, name in found[:25]:
        yield {"kernel": name[:80], "ms": round(ms, 3), "launches": count}
