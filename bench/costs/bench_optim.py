"""Cost of a step with each optimizer, and with pruning of weights, over AdamW's; each in its own process.

    pytest bench/costs/bench_optim.py --benchmark-only

At the `study` scale, or that of --scale. "masked" is a step that keeps half of the weights at zero, "look" one that
also recomputes the masks. A run recomputes every 50 steps, so that pruning costs masked + (look - masked) / 50:
the last row.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from bench.compare.worker import Arm
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
    common = {"manifest": "v0", "scale": setting.scale or "study", "device": setting.device}
    plain = {
        kind: ("bench.compare.worker:ratrain_step", {"overrides": [f"optim.kind={kind}", *own]})
        for kind, own in {BASE: [], **OTHERS}.items()
    }
    pruned = {
        name: ("bench.costs.pruning:pruned_step", {"overrides": PRUNED, "looks": name == LOOK})
        for name in (MASKED, LOOK)
    }
    with ExitStack() as stack:
        arms = {
            name: stack.enter_context(
                Arm.start(
                    make=make,
                    arguments={**common, **own, "overrides": [*own["overrides"], *setting.overrides]},
                    label=name,
                    wait=False,
                )
            )
            for name, (make, own) in {BASE: plain[BASE], TWIN: plain[BASE], **plain, **pruned}.items()
        }
        for arm in arms.values():  # in parallel: started one by one, the first stays 1 to 2 % slower
            arm.ready()
        steps = {name: partial(arm.step, 1) for name, arm in arms.items()}
        rounds = setting.rounds_within(steps, share=0.25)
        seconds = setting.measure(steps, rounds=rounds, told="optimizers", timed=False)
    seconds[RUN] = [m + (look - m) / EVERY for m, look in zip(seconds[MASKED], seconds[LOOK], strict=True)]
    return Measured("optimizers", seconds, base=BASE, twin=TWIN)


@pytest.mark.parametrize("name", [TWIN, *OTHERS, MASKED, LOOK, RUN])
def bench_step(benchmark, measured, name):
    bound = BOUNDS.get(name)
    measured.tell(benchmark, name, measured.within(name, bound) if bound else "")
