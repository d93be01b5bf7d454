"""What a step of each variant costs against V0, in rounds so that drift hits all of them alike.

Per round every variant takes one step, in one order and then in the other; CPU time of this process, one thread.
A second V0 runs along: the half-width of its interval is what the machine cannot resolve, and a bound holds when the
upper end of a variant's interval is within the bound plus that.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from history import record

from ratrain.config.catalogue import catalogue
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.engine.compile import keep_compiled_code
from ratrain.engine.device import keep_freed_memory, set_determinism
from ratrain.engine.paired import Ratio, measure, rows_of
from ratrain.engine.stepping import train_step
from ratrain.recipe.data import open_corpus
from ratrain.recipe.sampling import Sampler
from ratrain.registry import optim_kinds, patch_kinds

ROUNDS = int(os.environ.get("ROUNDS", "60"))
SET = os.environ.get("SET", "").split()  # keys to change in all of them, e.g. model.block_size=1024 train.batch=2
BOUND = 1.02  # of V0, for variants that only gate scores
WIDER = {  # for those that compute more; None where the cost is part of what is asked
    **dict.fromkeys((f"unified_ra_v{n}" for n in (3, 4, 5, 6, 11, 13)), 1.05),
    **dict.fromkeys(("tied_ra", "tied_ra_low_rank"), 1.15),
    **dict.fromkeys((f"unified_ra_v{n}" for n in (14, 15, 17, 18, 19)), 1.6),
    **dict.fromkeys(("unified_ra_v10", "output_gate", "double_attention", "modern"), None),
    **{Path(entry.file).stem: None for entry in catalogue() if "ideas" in Path(entry.file).parts},
}
BASE, TWIN = "unified_ra_v0", "unified_ra_v0 again"
NAMES = [Path(entry.file).stem for entry in catalogue() if entry.same_as is None and entry.id != "gpt2"]


def step_of(name: str) -> Callable[[], object]:
    """A warmed-up train step of the manifest at its default scale; each call takes the next batch."""
    source = read_source(find_manifest(name), overrides=SET)
    manifest = resolve(source, patches=patch_kinds(), optimizers=optim_kinds())
    corpus = open_corpus(manifest.data, vocab_size=manifest.model.vocab_size)
    sampler = Sampler(corpus.train, seed=1, batch=manifest.train.batch, block_size=manifest.model.block_size)
    _, step = train_step(manifest, lr=1e-3)
    batches = iter(range(1 << 60))
    for _ in range(3):
        step(*sampler.batch(next(batches)))
    return lambda: step(*sampler.batch(next(batches)))


@pytest.fixture(scope="module")
def steps(request) -> dict[str, Callable[[], object]]:
    """Of the variants that were asked for, by -k for instance."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.module is request.module}
    torch.set_num_threads(1)
    set_determinism("auto", torch.device("cpu"))
    keep_freed_memory()
    keep_compiled_code()
    names = {BASE: BASE, TWIN: BASE} | {name: name for name in NAMES if name in asked}
    return {label: step_of(name) for label, name in names.items()}


@pytest.fixture(scope="module")
def seconds(steps) -> dict[str, list[float]]:
    seconds = measure(steps, rounds=ROUNDS)
    record(" ".join(["variants", *SET]), rows_of(seconds, base=BASE))
    return seconds


@pytest.mark.parametrize("name", [TWIN, *NAMES])
def bench_step_against_v0(benchmark, steps, seconds, name):
    ratio = Ratio.of(seconds[name], seconds[BASE])
    benchmark.extra_info.update(ratio_to_v0=ratio.median, low=ratio.low, high=ratio.high, rounds=ROUNDS)
    benchmark.pedantic(steps[name], rounds=5)  # for pytest-benchmark's own table: wall time, not paired
    twin = Ratio.of(seconds[TWIN], seconds[BASE])
    bound = WIDER.get(name, BOUND)
    verdict = f"{'within' if ratio.holds(bound, twin) else 'NOT within'} {bound}" if bound else ""
    cost = 1e3 * statistics.median(seconds[name])
    print(f"{name:22} {cost:7.1f} ms  {ratio} x V0  {verdict}")
