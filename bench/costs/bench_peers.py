"""Cost of a step of nanoGPT over ratrain's: the same GPT-2, each in its own process, in rounds.

    NANOGPT=/path/to/nanoGPT pytest bench/costs/bench_peers.py --benchmark-only

Without NANOGPT, which names a checkout, only ratrain's arms are measured. Per round every process takes one step, in
order and in reverse order; on a CPU, CPU time of the process, one thread, on batches read beforehand. A second arm of
ratrain runs as a twin: the half-width of its interval is the resolution of the machine, and a claim holds when the
lower end of nanoGPT's interval, eager and compiled, is at least the bound less that. Before, the losses of all are
compared. At the `study` shape several sets of processes are measured, and "by set" has the ratio of each. On a GPU only
two processes live at a time, ratrain's and one other: five would share its memory.
Shapes: the `study` scale with its own vocabulary and with GPT-2's, or that of --scale; common settings: peers.py.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.costs import peers
from bench.costs.setting import Measured, Setting
from ratrain.profile.paired_timing import Ratio

Arms = dict[str, dict[str, Any]]  # options of each, by name

NANOGPT = os.environ.get("NANOGPT", "")
OURS, TWIN, OURS_EAGER = "ours", "ours again", "ours, eager"
PEERS = {"nanoGPT, eager": False, "nanoGPT, compiled": True} if NANOGPT else {}
GPT2_VOCABULARY = ("data.tokenizer=gpt2", "model.vocab_size=50257")
SHAPES = {"study": (), "study with GPT-2's vocabulary": GPT2_VOCABULARY}
SETS = {"study": 3}  # of processes: one of nanoGPT's is up to a tenth faster than another, for as long as it lives
BOUNDS = {
    "study": 1.15,
    "study with GPT-2's vocabulary": 1.30,
    "gpt2_124m": 1.2,
}  # over ratrain's step, for nanoGPT eager and compiled


def hold_together(arguments: dict[str, Any]) -> None:
    """Checks that the losses are equal at the start and after updates."""
    manifest = peers.common_manifest(arguments["scale"], arguments["overrides"])
    device, code = arguments["device"], peers.load_code(Path(NANOGPT).expanduser())
    steps = peers.our_step(manifest, device, compiled=False), peers.their_step(manifest, code, device, compiled=False)
    exact = manifest.train.precision == "fp32"
    for number, batch in enumerate(peers.batches_of(manifest, device)[:4]):
        mine, theirs = (step(*batch) for step in steps)
        tolerance = (1e-5 if number == 0 else 1e-4) if exact else 2e-2
        torch.testing.assert_close(theirs, mine, rtol=tolerance, atol=0, msg=f"losses part at step {number}")


@pytest.fixture(scope="module")
def measured(setting: Setting):
    """Measures a shape on first use, the arms in turns."""
    return functools.cache(lambda shape: _measure(shape, setting))


def _measure(shape: str, setting: Setting) -> Measured:
    overrides = [*SHAPES.get(shape, ()), *setting.overrides]
    common = {"scale": setting.scale or "study_2026_11", "overrides": overrides, "device": setting.device}
    if setting.place.type == "cuda":
        micro = peers.common_manifest(setting.scale, overrides).train.micro_batch
        common["overrides"] = [f"train.batch={micro}", f"train.micro_batch={micro}", *overrides]
    if PEERS:
        hold_together(common)
    theirs = {**common, "checkout": str(Path(NANOGPT).expanduser())}
    arms: Arms = {
        name: {"make": "bench.costs.peers:ours", "arguments": {**common, "compiled": name != OURS_EAGER}}
        for name in (OURS, TWIN, OURS_EAGER)
    }
    arms |= {
        name: {"make": "bench.costs.peers:nanogpt", "arguments": {**theirs, "compiled": compiled}}
        for name, compiled in PEERS.items()
    }
    return _by_pairs(arms, shape, setting) if setting.place.type == "cuda" else _by_sets(arms, shape, setting)


def _by_sets(arms: Arms, shape: str, setting: Setting) -> Measured:
    """Measures all arms together, in one or more sets of processes."""
    count = SETS.get(shape, 1)
    sets = [setting.measure_arms(arms, share=0.3 / count, told=f"peers {shape}") for _ in range(count)]
    seconds = {name: [cost for one in sets for cost in one[name]] for name in arms}
    extra = {}
    if count > 1:
        medians = {name: [Ratio.of(one[name], one[OURS]).median for one in sets] for name in arms}
        extra = {name: {"by set": " ".join(f"{m:.3f}" for m in found)} for name, found in medians.items()}
    return Measured(f"peers {shape}", seconds, base=OURS, twin=TWIN, extra=extra)


def _by_pairs(arms: Arms, shape: str, setting: Setting) -> Measured:
    """Measures each other arm against ratrain's, one pair after the other."""
    pairs = {}
    for name in (name for name in arms if name != OURS):
        pair, share = {OURS: arms[OURS], name: arms[name]}, 0.3 / (len(arms) - 1)
        pairs[name] = setting.measure_arms(pair, share=share, told=f"peers {shape}")
    seconds = {OURS: pairs[TWIN][OURS]} | {name: found[name] for name, found in pairs.items()}
    bases = {name: found[OURS] for name, found in pairs.items()}
    return Measured(f"peers {shape}", seconds, base=OURS, twin=TWIN, bases=bases)


def shapes(scale: str | None) -> list[str]:
    return list(SHAPES) if scale in (None, "study_2026_11") else [scale]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", [TWIN, OURS_EAGER, *PEERS])
    metafunc.parametrize("shape", shapes(metafunc.config.getoption("--scale")))


def bench_step_against_ours(benchmark, measured, shape, name):
    found = measured(shape)
    bound = BOUNDS.get(shape) if name in PEERS else None
    found.tell(benchmark, name, found.reaches(name, bound) if bound else "")
