"""What the engine adds to a step: sampling, schedule, events and their file, over the bare train step on one batch.

Both arms train the same compiled model at the default scale, a window at a time, in rounds as in bench_variants; CPU
time of this process, one thread. A second bare arm is what the machine cannot resolve. Checkpoints and evaluations are
not in it: a run states their seconds itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from history import record

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.engine.compile import keep_compiled_code
from ratrain.engine.engine import Engine
from ratrain.engine.paired import Ratio, measure, rows_of
from ratrain.engine.signals import StopRequest
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.sinks.fanout import Fanout
from ratrain.sinks.jsonl import Jsonl
from ratrain.sinks.monitor import Monitor
from ratrain.sinks.progress import Lines

ROUNDS = int(os.environ.get("ROUNDS", "60"))  # of 60 steps each
BOUND = 1.02
WINDOW = 10  # log.every of the default scale


@pytest.fixture
def arms(tmp_path):
    """A window of the engine with the sinks of a run; the same steps bare, twice."""
    torch.set_num_threads(1)
    keep_compiled_code()
    source = read_source(find_manifest("v9"), overrides=["eval.every=0", "checkpoint.every=0", f"log.every={WINDOW}"])
    manifest = resolve(source, patches=patch_kinds(), optimizers=optim_kinds())
    emit = Fanout()
    with (tmp_path / "log.txt").open("w") as log:
        engine = Engine(manifest, checkpoints=Path(tmp_path), device=torch.device("cpu"), emit=emit)
        for sink in (Jsonl(tmp_path / "events.jsonl"), Lines(log, stamped=True), Monitor(emit)):
            emit.add(sink)
        engine.total_steps = 1 << 40  # as many windows as are asked for
        engine._choose_attention()
        engine._compile()
        stop, batch = StopRequest(), engine.sampler.batch(0)

        def bare():
            for _ in range(WINDOW):
                result = engine.train_step(*batch)
            return result.loss.item()

        yield {"bare": bare, "bare again": bare, "engine": lambda: engine._window(stop)}


def bench_engine_over_bare_steps(benchmark, arms):
    for arm in arms.values():
        arm()
    seconds = measure(arms, rounds=ROUNDS)
    record("engine", rows_of(seconds, base="bare"))
    twin, ratio = (Ratio.of(seconds[name], seconds["bare"]) for name in ("bare again", "engine"))
    benchmark.extra_info.update(ratio=ratio.median, low=ratio.low, high=ratio.high, rounds=ROUNDS)
    benchmark.pedantic(arms["engine"], rounds=3)
    verdict = "within" if ratio.holds(BOUND, twin) else "NOT within"
    print(f"\nengine over bare steps {ratio}, bare over bare {twin}: {verdict} {BOUND}")
