"""Products of fp32 matrices: by oneDNN on the CPUs for which MKL has no AVX-512 code, else by torch.

MKL, the BLAS library of torch's x86 builds, uses its AVX-512 code on Intel CPUs only. oneDNN uses AVX-512 on every CPU
that supports it: 5 to 12 % faster on Zen 4, as long as no MKL product runs in between.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a [M, K] @ b [K, N], without a gradient. oneDNN reads b row-major or transposed, and needs a with
    contiguous rows."""
    if by_onednn(a, b) and is_plain(b):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return a @ b


def is_plain(x: Tensor) -> bool:
    """Whether x [M, N] is contiguous, or its transpose is: oneDNN has no fast code for a slice of a wider array."""
    return x.is_contiguous() or x.T.is_contiguous()


def by_onednn(*operands: Tensor) -> bool:
    """Whether oneDNN is faster for a product of these operands: all fp32, on a CPU where `onednn_is_faster`."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in operands) and onednn_is_faster()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a non-Intel x86 CPU with AVX-512, under a torch built with MKL and oneDNN.

    Decided by CPU model, not by a measurement: timing noise would then change the bits of a run.
    """
    able = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return able and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _vendor()


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")
