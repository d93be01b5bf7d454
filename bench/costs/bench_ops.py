"""Cost of ratrain's operations over the ones they replace, forward and backward: attention, the loss, and decoding.

On a GPU at GPT-2 124M's shapes in bf16, with the kernels; on a CPU with the definitions, at the shapes of the default
scale. All in rounds; FLOP/s count only the products that the result requires.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.costs.setting import Measured, Setting, device_of
from bench.gpu import inputs, timing

ON_CPU = inputs.Setting(
    "cpu", batch=8, n_head=6, n_token=128, head_dim=32, block=16, n_class=2048, channels=192, decode_batch=8,
    decode_context=1024, dtype=torch.float32,
)  # fmt: skip
BASE = {  # the baseline of a group: the first member with this prefix that runs here
    "attention, forward": "sdpa forward",
    "attention, forward and backward": "sdpa forward + backward",
    "loss": "loss unfused",
    "decoding": "decode dense sdpa",
}


def _members(group: str, sizes: inputs.Setting) -> Iterator[timing.Timed]:
    if not group.startswith("attention"):
        yield from {"loss": timing.loss, "decoding": timing.decoding}[group](sizes)
    else:
        yield from (one for one in timing.attention(sizes) if ("+ backward" in one.name) == ("and" in group))


def _sizes(device: str) -> inputs.Setting:
    return ON_CPU if device == "cpu" else replace(inputs.Setting(), device=device)


@pytest.fixture(scope="module")
def measured(setting: Setting):
    """Measures a group of operations on first use."""
    return functools.cache(lambda group: _measure(group, setting))


def _measure(group: str, setting: Setting) -> Measured:
    able: dict[str, timing.Timed] = {}
    for one in _members(group, _sizes(setting.device)):
        try:
            one.run()
        except RuntimeError:  # a backend that cannot serve here
            continue
        able[one.name] = one
    seconds = setting.measure({name: one.run for name, one in able.items()}, rounds=30, told=group)
    base = next(name for name in able if name.startswith(BASE[group]))
    found = Measured(f"ops {group}", seconds, base=base)
    found.extra = {name: _rates(one, found.median(name)) for name, one in able.items()}
    return found


def _rates(one: timing.Timed, seconds: float) -> dict[str, Any]:
    rates = {"GFLOP/s": round(one.flops / seconds / 1e9, 1), "GB/s": round(one.bytes / seconds / 1e9, 1)}
    return {key: rate for key, rate in rates.items() if rate}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked: Any = metafunc.config.getoption
    sizes = _sizes(device_of(asked("--device")))
    cases = [(group, one.name) for group in BASE for one in _members(group, sizes)]
    metafunc.parametrize(("group", "name"), cases)


def bench_op(benchmark, measured, group, name):
    found = measured(group)
    if name not in found.seconds:
        pytest.skip("cannot serve here")
    found.tell(benchmark, name)
