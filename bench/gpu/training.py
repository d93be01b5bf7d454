"""Training parts of the first minutes on a GPU: steps of V0 and its rivals in turns, and runs that must learn."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.steps import Recipe, stepping
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.engine.engine import Engine
from ratrain.events import Event, Window
from ratrain.machine.compile import keep_compiled_code
from ratrain.registry import optim_kinds, patch_kinds

Row = dict[str, Any]
BASE, TWIN, NANO = "unified_ra_v0", "unified_ra_v0 with 6 heads of 128", "nanoGPT"
_ROUNDS = 6


@dataclass
class Arm:
    """A ready step, its tokens, its FLOPs per token (None: not known) and the loss of its first call."""

    step: Callable[[], object]
    tokens: int
    flops: int | None
    loss: float


def steps(batch: int, small: bool) -> Iterator[Row]:
    """V0, its twin of 128-channel heads and nanoGPT, compiled, at one micro-batch of `batch` sequences, A B B A."""
    makers: dict[str, Callable[[], Arm]] = {
        BASE: lambda: _ours((), batch, small),
        TWIN: lambda: _ours(("model.n_head=1" if small else "model.n_head=6",), batch, small),
    }
    if folder := os.environ.get("NANOGPT"):
        makers[NANO] = lambda: _nano(folder, batch, small)
    yield from _in_turns(makers, batch, small)


def whole(small: bool) -> Iterator[Row]:
    """V0 with one graph for the model against one graph per block."""
    makers: dict[str, Callable[[], Arm]] = {
        BASE: lambda: _ours((), 32, small),
        "unified_ra_v0 as one graph": lambda: _ours(("compile.scope=model",), 32, small),
    }
    yield from _in_turns(makers, 32, small)


def autotune(small: bool) -> Iterator[Row]:
    """V0 with tiles of its products chosen by timing, against torch's own choice; compiling them takes minutes."""
    makers: dict[str, Callable[[], Arm]] = {
        BASE: lambda: _ours((), 32, small),
        "unified_ra_v0 autotuned": lambda: _ours(("compile.autotune=true",), 32, small),
    }
    yield from _in_turns(makers, 32, small)


def _in_turns(makers: dict[str, Callable[[], Arm]], batch: int, small: bool) -> Iterator[Row]:
    keep_compiled_code()
    ready: dict[str, Arm] = {}
    for name, make in makers.items():
        begin = time.monotonic()
        try:
            ready[name] = make()
        except Exception as error:
            yield {"arm": name, "batch": batch, "why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        yield {"arm": name, "batch": batch, "compiled_s": round(time.monotonic() - begin, 1), "loss": ready[name].loss}
    took: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(2 if small else _ROUNDS):
        for name in (*ready, *reversed(ready)):
            took[name].append(_seconds(ready[name].step, small))
    for name, seconds in took.items():
        one, middle = ready[name], statistics.median(seconds)
        row: Row = {
            "arm": name,
            "batch": batch,
            "ms": round(1e3 * middle, 2),
            "tokens_per_s": round(one.tokens / middle),
        }
        if BASE in took:
            row["over_v0"] = round(statistics.median(a / b for a, b in zip(seconds, took[BASE], strict=True)), 4)
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


def _seconds(step: Callable[[], object], small: bool) -> float:
    """Returns the seconds of a step, from three on an idle device."""
    if not small:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(3):
        step()
    if not small:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / 3


def _ours(keys: tuple[str, ...], batch: int, small: bool) -> Arm:
    common = (f"train.batch={batch}", f"train.micro_batch={batch}")
    how = ("compile.scope=off",) if small else ("train.precision=bf16", "compile.scope=block")
    recipe = Recipe("cpu" if small else "cuda", "tiny" if small else "gpt2_124m", (*common, *how, *keys), 1)
    one = stepping(BASE, recipe)
    result: Any = one.step()
    return Arm(one.step, one.tokens, one.flops, round(float(result.loss), 3))


def _nano(folder: str, batch: int, small: bool) -> Arm:
    """nanoGPT's own model and optimizer as its train.py runs them: bf16 autocast, compiled whole, clipped."""
    sys.path.insert(0, folder)
    import model as nanogpt  # pyright: ignore[reportMissingImports] - the user's

    device = "cpu" if small else "cuda"
    length, shape = (32, (2, 2, 32)) if small else (1024, (12, 12, 768))
    sizes = dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True))
    made = nanogpt.GPT(nanogpt.GPTConfig(vocab_size=50304, block_size=length, dropout=0.0, bias=True, **sizes)).to(
        device
    )
    optimizer = made.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device)
    forward = made if small else torch.compile(made)

    def step() -> torch.Tensor:
        x = torch.randint(50257, (batch, length + 1), device=device)
        with torch.autocast(device, torch.bfloat16):
            _, loss = forward(x[:, :-1].contiguous(), x[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    for _ in range(3):
        first = step()
    return Arm(step, batch * length, None, round(float(first), 3))


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


# -- runs that learn ------------------------------------------------------------------------------------------------


def train(small: bool) -> Iterator[Row]:
    """The same run on the GPU in bf16 and on the CPU in fp32: the loss must fall, and the two stay near each other."""
    count, curves = (20, {}) if small else (300, {})
    for name, device, precision in (
        ("GPU", "cpu" if small else "cuda", "fp32" if small else "bf16"),
        ("CPU", "cpu", "fp32"),
    ):
        keys = (f"train.budget.steps={count}", f"train.precision={precision}", "compile.scope=off", "log.every=10")
        begin, windows = time.monotonic(), []
        final = _run(_manifest("v0", "tiny" if small else "study", keys), device, windows.append)
        curves[name] = [loss for window in windows for loss in window.losses]
        yield {
            "run": name, "device": device, "precision": precision, "steps": len(curves[name]),
            "first": round(curves[name][0], 4), "last": round(final, 4), "seconds": round(time.monotonic() - begin, 1),
        }  # fmt: skip
    apart = [abs(a - b) for a, b in zip(curves["GPU"], curves["CPU"], strict=True)]
    fallen = curves["GPU"][0] - curves["GPU"][-1]
    # bf16 keeps 8 bits of each factor: a loss of 7 is known to 0.03, and training is stable at this learning rate
    row: Row = {
        "largest_gap": round(max(apart), 4),
        "mean_gap": round(statistics.mean(apart), 5),
        "fallen": round(fallen, 3),
    }
    good = max(apart) < 0.1 and fallen > (0.02 if small else 1.0)
    yield row if good else {**row, "why": "the GPU's run does not learn, or is not the CPU's"}


def pairs(small: bool) -> Iterator[Row]:
    """Final losses of v0, v1 and aa_ulp over paired seeds, and r, the correlation of the arms over seeds."""
    arms, seeds = ("v0", "v1", "aa_ulp"), (1, 2, 3)
    device, losses = "cpu" if small else "cuda", {arm: [] for arm in arms}
    keys = ("train.budget.steps=10",) if small else ("train.budget.steps=250", "train.precision=bf16")
    for seed in seeds:
        for arm in arms:
            found = (*keys, "compile.scope=off", f"seed.init={seed}", f"seed.data={seed}")
            losses[arm].append(_run(_manifest(arm, "tiny" if small else "study", found), device, lambda window: None))
            yield {"arm": arm, "seed": seed, "loss": round(losses[arm][-1], 5)}
    for arm in arms[1:]:
        apart = [a - b for a, b in zip(losses[arm], losses["v0"], strict=True)]
        r = statistics.correlation(losses[arm], losses["v0"])
        yield {"arm": arm, "r": round(r, 4), "mean_difference": round(statistics.mean(apart), 5),
               "sd_of_differences": round(statistics.stdev(apart), 5)}  # fmt: skip


def _manifest(name: str, scale: str, keys: tuple[str, ...]) -> Manifest:
    source = read_source(find_manifest(name), scale=scale, overrides=keys)
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def _run(manifest: Manifest, device: str, seen: Callable[[Window], None]) -> float:
    """Returns the validation loss at the end of a run, which leaves no files."""

    def emit(event: Event) -> None:
        if isinstance(event, Window):
            seen(event)

    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(manifest, checkpoints=Path(folder), device=torch.device(device), emit=emit)
        loss = engine.run().loss
    assert loss is not None
    return loss
