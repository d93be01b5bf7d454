"""Cost of a step with each optimizer, and with pruning of weights, over AdamW's; each in its own process.

    pytest bench/costs/bench_optim.py --benchmark-only

At the `study` scale, or that of --scale. "masked" is a step that keeps half of the weights at zero, "look" one that
also recomputes the masks. A run recomputes every 50 steps, so that pruning costs masked + (look - masked) / 50:
the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench.costs.setting import Measured, Setting

BASE, TWIN = "adamw", "adamw again"
MASKED, LOOK, RUN = "state, masked", "state, look", "state, every 50"
BOUNDS = {"adamwspam": 1.05, RUN: 1.03}
OTHERS = {
    "adamwspam": ["optim.grace=0"],  # cuts off spikes in every step, not only once it has seen fifty
    "muon": [],
    "sinkgd": [],
}
EVERY = 50
PRUNED = ("prune.kind=state", "prune.score=bitter0", "prune.target=0.5")


@pytest.fixture(scope="module")
def measured(setting: Setting) -> Measured:
    common = {"manifest": "v0", "scale": setting.scale or "study_2026_11", "device": setting.device}

    def arm(make: str, overrides: Sequence[str], **more: object) -> dict[str, Any]:
        return {"make": make, "arguments": {**common, "overrides": [*overrides, *setting.overrides], **more}}

    arms = {
        name: arm("bench.compare.worker:ratrain_step", [f"optim.kind={name.removesuffix(' again')}", *own])
        for name, own in {BASE: [], TWIN: [], **OTHERS}.items()
    }
    arms |= {name: arm("bench.costs.pruning:pruned_step", PRUNED, looks=name == LOOK) for name in (MASKED, LOOK)}
    seconds = setting.measure_arms(arms, share=0.25, told="optimizers")
    seconds[RUN] = [m + (look - m) / EVERY for m, look in zip(seconds[MASKED], seconds[LOOK], strict=True)]
    return Measured("optimizers", seconds, base=BASE, twin=TWIN)


@pytest.mark.parametrize("name", [TWIN, *OTHERS, MASKED, LOOK, RUN])
def bench_step(benchmark, measured, name):
    bound = BOUNDS.get(name)
    measured.tell(benchmark, name, measured.within(name, bound) if bound else "")
