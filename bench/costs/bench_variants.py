"""Cost of a train step of each variant over V0's, in rounds so that drift hits all of them alike.

Per round every variant takes one step, in order and in reverse order; on a CPU, CPU time of this process, one thread. A
second V0 runs as a twin: the half-width of its interval is the resolution of the machine. A bound holds when the upper
end of a variant's interval is at most the bound plus that half-width.

    pytest bench/costs/bench_variants.py --benchmark-only -k "v1 or v9" --rounds 60
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.compare import counters
from bench.costs import compile_times
from bench.costs.setting import Measured, Setting
from ratrain.config.catalogue import catalogue
from ratrain.data.corpus import open_corpus
from ratrain.data.sampling import Sampler
from ratrain.engine.assembly import train_step
from ratrain.machine.device import peak_flops
from ratrain.model.count import count

BOUND = 1.02  # of V0, for variants that only gate scores
WIDER = {  # for variants that compute more; None if the cost is part of the study
    **dict.fromkeys((f"unified_ra_v{n}" for n in (3, 4, 5, 6, 11, 13)), 1.05),
    **dict.fromkeys(("tied_ra", "tied_ra_low_rank"), 1.15),
    **dict.fromkeys((*(f"unified_ra_v{n}" for n in (14, 15, 17, 18, 19)), "c1", "c2", "c3"), 1.6),  # pruning variants
    **dict.fromkeys(("unified_ra_v10", "output_gate", "double_attention", "modern"), None),
    **{Path(entry.file).stem: None for entry in catalogue() if "ideas" in Path(entry.file).parts},
}
BASE, TWIN = "unified_ra_v0", "unified_ra_v0 again"
NAMES = [
    Path(entry.file).stem
    for entry in catalogue()  # weight pruning is V0 under an optimizer: bench_optim; old studies are not tuned
    if entry.same_as is None and entry.id != "gpt2" and not {"prune", "legacy"} & {*Path(entry.file).parts}
]
_TOGETHER = 5  # variants in a GPU's memory besides the two V0

Step = Callable[[], object]


class Variant:
    """A train step of a manifest; each call takes the next batch."""

    def __init__(self, name: str, setting: Setting):
        self.name, self.device, self.manifest = name, setting.device, setting.manifest(name)
        train, spec = self.manifest.train, self.manifest.model
        corpus = open_corpus(self.manifest.data, vocab_size=spec.vocab_size)
        sampler = Sampler(corpus.train, seed=1, batch=train.batch, block_size=spec.block_size)
        batches = (tuple(part.to(setting.place) for part in sampler.batch(number)) for number in range(1 << 60))
        model, step = train_step(self.manifest, lr=1e-3, device=setting.device)
        self.step: Step = lambda: step(*next(batches))
        self.tokens = train.batch * spec.block_size
        self.flops = self.tokens * count(model).train_flops_per_token

    def looked_at(self) -> dict[str, Any]:
        """Measures the variant alone, without the compiled code of other variants."""
        torch._dynamo.reset()
        found = compile_times.first_steps(self.name, self.manifest, self.device, self.step)
        return {"peak MiB": counters.count(self.step, self.device)["peak_bytes"] >> 20, **found}

    def speed(self, seconds: float, peak: float | None) -> dict[str, Any]:
        mfu = round(self.flops / seconds / peak, 3) if peak else None
        return {"tokens/s": round(self.tokens / seconds), "MFU": mfu}


def groups(asked: list[str], setting: Setting) -> Iterator[list[str]]:
    """Splits the variants into groups measured together: all on a CPU, `_TOGETHER` on a GPU, for its memory."""
    size = len(asked) if setting.place.type == "cpu" else _TOGETHER
    yield from (asked[at : at + size] for at in range(0, len(asked), size or 1))


@pytest.fixture(scope="module")
def measured(request, setting) -> dict[str, Measured]:
    """Measures the selected variants (by -k for instance); by name."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.module is request.module} - {TWIN}
    peak = peak_flops(setting.place, setting.manifest(BASE).train.precision)["measured"]
    found: dict[str, Measured] = {}
    suite = " ".join(["variants", *([setting.scale] if setting.scale else []), *setting.overrides])
    for group in groups([name for name in NAMES if name in asked and name != BASE] or [BASE], setting):
        alone = {name: Variant(name, setting).looked_at() for name in dict.fromkeys([BASE, *group])}
        variants = {name: Variant(name.removesuffix(" again"), setting) for name in dict.fromkeys([BASE, TWIN, *group])}
        steps = {name: variant.step for name, variant in variants.items()}
        seconds = setting.measure(steps, rounds=setting.rounds_within(steps), told=suite)
        speed = {name: variants[name].speed(statistics.median(costs), peak) for name, costs in seconds.items()}
        extra = {name: {**speed[name], **alone.get(name, {})} for name in variants}
        found |= dict.fromkeys(variants, Measured(suite, seconds, base=BASE, twin=TWIN, extra=extra))
        del variants, steps
        gc.collect()
        torch.cuda.empty_cache()
    return found


@pytest.mark.parametrize("name", [TWIN, *NAMES])
def bench_step_against_v0(benchmark, measured, name):
    found = measured[name]
    found.tell(benchmark, name, found.within(name, WIDER.get(name, BOUND)))
