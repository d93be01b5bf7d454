"""Kernel parts of the first minutes on a GPU: correctness, and speed compared with torch's own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch

from bench.gpu import correctness, full_shapes, inputs, timing
from bench.gpu.inputs import Setting
from ratrain.kernels.linear_cross_entropy import op as loss_op

Row = dict[str, Any]
_NEEDED = ("pydantic", "tomli", "tiktoken", "safetensors", "psutil", "rich")


def _setting(small: bool) -> Setting:
    return inputs.REHEARSAL if small else Setting()


def environment() -> Iterator[Row]:
    """Versions, the card and its clocks, and the missing packages."""
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        card = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except OSError:
        card = ""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    yield {
        "card": card, "python": sys.version.split()[0], "torch": torch.__version__, "triton": _version("triton"),
        "cudnn": torch.backends.cudnn.version(), "cores": os.cpu_count(), "missing": missing,
    }  # fmt: skip


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def peaks(small: bool) -> Iterator[Row]:
    """Measured speed of one large product and one large copy."""
    peak = timing.peaks(_setting(small))
    yield {"tflops": round(peak.flops / 1e12, 1), "GB_per_s": round(peak.bytes / 1e9)}


def products(small: bool) -> Iterator[Row]:
    """Every product of a step of V0 by itself; the shapes are the same with heads of 128 channels."""
    setting = _setting(small)
    rows, channels = setting.batch * setting.n_token, setting.channels
    shapes = {"qkv": 3 * channels, "proj": channels, "up": 4 * channels, "logits": setting.n_class}
    cases = [(name, n, channels) for name, n in shapes.items()] + [("down", channels, 4 * channels)]
    for name, n, k in cases:
        x, w, d = (torch.randn(*s, device=setting.device).to(setting.dtype) for s in ((rows, k), (n, k), (rows, n)))
        flops = 2e-9 * rows * n * k  # milliseconds to TFLOP/s
        ways = {"forward": lambda x=x, w=w: x @ w.T, "d_x": lambda d=d, w=w: d @ w, "d_w": lambda d=d, x=x: d.T @ x}
        reached = {way: round(flops / timing.milliseconds(run, setting), 1) for way, run in ways.items()}
        yield {"product": name, "rows": rows, "n": n, "k": k, **reached}


def checks(small: bool) -> Iterator[Row]:
    """Every operation at small shapes, in every dtype, against float64; compiled by several processes."""
    setting = _setting(small)
    work = [(one, setting) for one in correctness.all_checks(setting)]
    if small and os.environ.get("TRITON_INTERPRET") != "1":
        work = work[:4]  # without kernels, the definitions against themselves
    yield from inputs.spread(correctness.check, work, setting)


def full(small: bool) -> Iterator[Row]:
    """Every operation at the shapes of GPT-2 124M, in the training dtype."""
    setting = _setting(small)
    for one in full_shapes.full_checks(setting):
        yield correctness.check((one, setting))
        if not small:
            torch.cuda.empty_cache()


def kernels(small: bool) -> Iterator[Row]:
    """Attention's backends and ratrain's kernels, as CUDA graphs."""
    yield from timing.time_groups(_setting(small), timing.attention)


def loss(small: bool) -> Iterator[Row]:
    """The head and its loss by rows of a chunk."""
    setting = _setting(small)
    rows = setting.batch * setting.n_token
    x, weight, targets = inputs.head_of(setting, rows, setting.channels, setting.n_class, setting.dtype)
    call = timing.both_ways(lambda: loss_op.linear_cross_entropy(x, weight, targets), (x, weight))
    for chunk in sorted({max(1, rows // parts) for parts in (1, 2, 4, 8, 16)}, reverse=True):
        with patch.object(loss_op, "_rows", lambda x, weight, chunk=chunk: chunk):
            ms = timing.milliseconds(call, setting)
        flops = 6e-9 * rows * setting.channels * setting.n_class
        yield {"chunk_rows": chunk, "ms": round(ms, 3), "tflops": round(flops / ms, 1)}


def decode(small: bool) -> Iterator[Row]:
    """A token of a batch of 64 at a context of 8192, with a whole cache and with a pruned one."""
    yield from timing.time_groups(_setting(small), timing.decoding)
