"""Cost per token of sampling with batch 1: V0 against the variants that keep a different cache.

With a cache, and V0 without one, which runs the whole context for each token. Per round each arm generates a context
length of tokens, greedily, untrained; the bytes are those of its fullest cache.

    pytest bench/costs/bench_decode.py --benchmark-only --scale gpt2_124m
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.costs.setting import Measured, Setting
from ratrain.config.catalogue import catalogue
from ratrain.model.build import build
from ratrain.model.generate import DecodingStats, generate
from ratrain.model.gpt2 import GPT2

BASE, TWIN, WHOLE = "unified_ra_v0", "unified_ra_v0 again", "unified_ra_v0 without a cache"
_LONGEST = 256  # most tokens generated
_WHOLE_EVERY = 16  # without a cache every so many lengths of the context are computed: all would take half the time


def _kinds() -> dict[str, str]:
    """A variant for each set of patches that decodes in its own way, by file name."""
    found: dict[str, str] = {}
    for entry in catalogue():
        if entry.same_as is None and entry.id not in ("gpt2", "modern") and "legacy" not in Path(entry.file).parts:
            found.setdefault(" ".join(sorted(kind for _, kind in entry.patches)), Path(entry.file).stem)
    return {stem: kinds for kinds, stem in found.items()}


NAMES = [name for name in _kinds() if name != BASE]


def drawing(name: str, setting: Setting) -> tuple[Callable[[], object], DecodingStats, GPT2]:
    """Returns a callable that generates a context length of tokens, its statistics, and the model."""
    manifest = setting.manifest(name)
    model = build(manifest, device=setting.place).eval()
    count, stats = min(_LONGEST, manifest.model.block_size) - 1, DecodingStats()
    prompt = torch.zeros(1, dtype=torch.int64, device=setting.place)

    def draw() -> None:
        for _ in generate(model, prompt, count=count, temperature=0, stats=stats):
            pass

    return draw, stats, model


@torch.inference_mode()
def _whole(model: GPT2, length: int) -> None:
    """Recomputes the whole context, which a cache avoids, for one in `_WHOLE_EVERY` lengths."""
    tokens = torch.zeros(1, length, dtype=torch.int64, device=model.wte.weight.device)
    for seen in range(1, length + 1, _WHOLE_EVERY):
        model.logits(tokens[:, :seen])[0, -1].float().cpu()


@pytest.fixture(scope="module")
def measured(request, setting: Setting) -> Measured:
    asked = {item.callspec.params["name"] for item in request.session.items if item.module is request.module}
    names = {BASE: BASE, TWIN: BASE} | {name: name for name in NAMES if name in asked}
    made = {label: drawing(name, setting) for label, name in names.items()}
    length = min(_LONGEST, made[BASE][2].spec.block_size)
    steps: dict[str, Callable[[], Any]] = {label: draw for label, (draw, _, _) in made.items()}
    if WHOLE in asked:
        steps[WHOLE] = lambda: _whole(made[BASE][2], length)
    for step in steps.values():
        step()
    drawn = setting.measure(steps, rounds=2, told="decode")
    # seconds of one token
    seconds = {label: [cost / (length - 1) for cost in costs] for label, costs in drawn.items()}
    if WHOLE in asked:
        seconds[WHOLE] = [cost / len(range(1, length + 1, _WHOLE_EVERY)) for cost in drawn[WHOLE]]
    extra = {label: {"cache bytes": stats.key_bytes + stats.value_bytes} for label, (_, stats, _) in made.items()}
    return Measured("decode", seconds, base=BASE, twin=TWIN, extra=extra)


@pytest.mark.parametrize("name", [TWIN, WHOLE, *NAMES])
def bench_token(benchmark, measured, name):
    measured.extra.setdefault(name, {})
    measured.extra[name] = {"tokens/s": round(1 / measured.median(name)), **measured.extra[name]}
    measured.tell(benchmark, name)
