"""Products of fp32 matrices on CPUs that the BLAS library does not serve at their best: by oneDNN there.

MKL, which torch's builds for x86 multiply with, keeps its AVX-512 code for Intel's own CPUs. oneDNN's runs on all that
have the instructions: 5 to 12 % faster on Zen 4, as long as no product of MKL's comes in between.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [K, N]; oneDNN reads b as it lies, transposed or not, and wants the rows of a one after the other.
    It has no gradient."""
    if by_onednn(a, b) and is_plain(b):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return a @ b


def is_plain(x: Tensor) -> bool:
    """Whether x [M, N] lies in order, or transposed: for a slice of something wider oneDNN has no fast code."""
    return x.is_contiguous() or x.T.is_contiguous()


def by_onednn(*operands: Tensor) -> bool:
    """Whether oneDNN is the faster one for a product of these."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in operands) and onednn_is_faster()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is an x86 CPU of another maker than Intel with AVX-512, under a torch that multiplies with MKL.

    By what the CPU is, not by a measurement: that would let noise decide the bits of a run.
    """
    able = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return able and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _vendor()


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")
