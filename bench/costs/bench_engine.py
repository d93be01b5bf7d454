"""Overhead of the engine over the train step: its windows, its checkpoints, its data, and the time to a first step.

    pytest bench/costs/bench_engine.py --benchmark-only --cold v0,v19

Windows of the engine with the sinks of a run, and the same steps bare, twice, of the same compiled model; V9 at the
default scale. A checkpoint and a batch are compared with the steps they accompany. The time to a first step is wall
time from the start of the command, once with compiled code and headers cached and once with empty caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import pytest

from bench.costs.setting import Measured, Setting, add_row
from ratrain.engine.engine import Engine
from ratrain.machine.signals import StopRequest
from ratrain.sinks.fanout import Fanout
from ratrain.sinks.jsonl import Jsonl
from ratrain.sinks.monitor import Monitor
from ratrain.sinks.progress import Lines

OVERHEAD = 1.005  # of bare steps, for a window of the engine
STALL = 1.05  # of the steps between two checkpoints, for those with one
DATA = 1.005
COLD, WARM = 60.0, 12.0  # seconds to the first step on two cores
WINDOW = 10  # log.every of the default scale


@pytest.fixture(scope="module")
def engine(setting: Setting, tmp_path_factory):
    """An engine, compiled, with the sinks of a run."""
    folder, every = tmp_path_factory.mktemp("run"), f"log.every={WINDOW}"
    manifest = setting.manifest("v9", "eval.every=0", "checkpoint.every=0", every)
    emit = Fanout()
    with (folder / "log.txt").open("w") as log:
        engine = Engine(manifest, checkpoints=folder, device=setting.place, emit=emit)
        for sink in (Jsonl(folder / "events.jsonl"), Lines(log, stamped=True), Monitor(emit)):
            emit.add(sink)
        engine.progress.total_steps = 1 << 40  # no limit on the number of windows
        engine._choose_attention()
        engine._compile()
        yield engine


@pytest.fixture(scope="module")
def windows(setting: Setting, engine: Engine) -> Measured:
    stop, batch = StopRequest(), engine._batch(0)

    def bare() -> object:
        for _ in range(WINDOW):
            result = engine.train_step(*batch)
        return result.loss.item()

    arms: dict[str, Callable[[], object]] = {"bare": bare, "bare again": bare, "engine": lambda: engine._window(stop)}
    for arm in arms.values():
        arm()
    return Measured("engine", setting.measure(arms, rounds=5, told="engine"), base="bare", twin="bare again")


@pytest.mark.parametrize("name", ["bare again", "engine"])
def bench_window(benchmark, windows, name):
    windows.tell(benchmark, name, windows.within(name, OVERHEAD) if name == "engine" else "")


def bench_checkpoint(benchmark, setting, engine, windows):
    """A checkpoint, in wall time because it waits for the disk, against the steps of one checkpoint interval."""
    every = setting.manifest("v9").checkpoint.every or 500
    costs = []
    for _ in range(5):
        engine.progress.steps += 1  # a step is saved once
        start = time.perf_counter()
        engine._save()
        costs.append(time.perf_counter() - start)
    _tell_part(benchmark, "checkpoint", costs, steps=every, step=windows.median("bare") / WINDOW, bound=STALL)


def bench_batch(benchmark, setting, engine, windows):
    """Reading a batch, against the step on it."""
    costs = [setting.timed(lambda position=position: engine._batch(position)) for position in range(200)]
    _tell_part(benchmark, "batch", costs, steps=1, step=windows.median("bare") / WINDOW, bound=DATA)


def _tell_part(benchmark, name: str, costs: list[float], *, steps: int, step: float, bound: float) -> None:
    """Adds a row for a part that occurs once per `steps` steps of `step` seconds."""
    middle = sorted(costs)[len(costs) // 2]
    share = middle / (steps * step)
    verdict = f"{'within' if 1 + share <= bound else 'NOT within'} {bound - 1:.1%}"
    among = "its step" if steps == 1 else f"the {steps} steps up to it"
    line = f"{name:24} {1e3 * middle:9.3f} ms  {share:.3%} of {among}  {verdict}"
    add_row(benchmark, "engine", costs, [line], {"share_of_steps": share, "steps": steps})


@pytest.mark.parametrize("kind", ["warm", "cold"])
def bench_first_step(benchmark, setting, kind):
    """Seconds from the command to the end of the first step; of --cold's manifests, at their scale."""
    seconds = {}
    for name in setting.cold:
        if kind == "warm":
            _first_step(name, setting, {})  # so that its code is kept
            seconds[name] = _first_step(name, setting, {})
        else:
            with tempfile.TemporaryDirectory() as empty:  # torch keeps compiled headers among temporary files
                seconds[name] = _first_step(
                    name, setting, {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/code", "TMPDIR": empty}
                )
    bound = COLD if kind == "cold" else WARM
    lines = [
        f"{name:20} {kind}  {waited:6.1f} s  {'within' if waited <= bound else 'NOT within'} {bound:g} s"
        for name, waited in seconds.items()
    ]
    add_row(benchmark, "first step", [*seconds.values()], lines, {**seconds, "bound": bound})


def _first_step(name: str, setting: Setting, environment: dict[str, str]) -> float:
    """Starts a run and ends it after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "ratrain", name, "--set", "log.every=1", "--out", folder, "--json"]
        words += ["--device", setting.device, *(["--scale", setting.scale] if setting.scale else [])]
        began = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as run:
            assert run.stdout
            for line in run.stdout:
                if json.loads(line)["event"] == "Window":
                    waited = time.perf_counter() - began
                    run.kill()
                    break
            else:
                pytest.fail(f"ratrain {name} ended with exit code {run.wait()} before its first step")
    return waited
