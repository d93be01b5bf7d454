"""The device of a run, its peak speed, and a record of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import ratrain
from ratrain.errors import UnavailableError
from ratrain.kernels.products import product

# dense bf16 FLOP/s from the vendors' data sheets, by a substring of the device's name
_DATASHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "B200": 2250e12,
    "W7900": 123e12,
    "MI300X": 1307e12,
}


def pick_device(name: str) -> torch.device:
    """Returns the device `name`; "auto" selects a GPU if there is one, else the CPU. Raises UnavailableError.

    Under a launcher each process takes the GPU with its local rank.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnavailableError(f"--device {name}: no such kind of device; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UnavailableError(f"--device {name}: ratrain trains on cpu, cuda and cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"--device {name}: torch {torch.__version__} sees no GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s), from cuda:0")
    return device


def check_fp8(device: torch.device, widths: tuple[int, ...] = ()) -> None:
    """Raises UnavailableError on a GPU without fp8 matrix products, or for `widths` that 16 does not divide.

    A CPU computes the same values in fp32, slower than bf16.
    """
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip or (major, minor) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise UnavailableError(
            f"train.precision = 'fp8' needs compute capability 8.9 or higher, and {name} has {major}.{minor}; use bf16"
        )
    if odd := [width for width in widths if width % 16]:
        raise UnavailableError(f"train.precision = 'fp8' needs widths that 16 divides, got {odd[0]}; use bf16")


def set_determinism(choice: str, device: torch.device) -> bool:
    """Turns deterministic algorithms on or off as the manifest requests; returns whether they are on.

    With them equal runs give equal bits. CPUs need it too: a compiled step adds gradients in the order in which its
    threads finish.
    """
    on = choice == "on" or (choice == "auto" and device.type == "cpu")
    if on and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    # the fill costs a pass over every new tensor, and no code here reads uninitialized memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return on


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for the next step (glibc only).

    By default it returns large arrays to the system and requests them again: 2000 page faults a step at `laptop` scale
    on a CPU, which take 6 ms of 250, and more time in the passes that incur them.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, -1)


def peak_flops(device: torch.device, precision: str) -> dict[str, float | None]:
    """Returns FLOP/s of matrix products: from the data sheet (known GPUs, bf16), and measured now on this machine."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((v for k, v in _DATASHEET.items() if k in name), None) if dtype == torch.bfloat16 else None
    return {"datasheet": sheet, "measured": _measure(device, dtype)}


def gpu_uuid(device: torch.device) -> str | None:
    """Returns the driver's UUID of the GPU, independent of CUDA_VISIBLE_DEVICES; None on a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    """Returns FLOP/s of the fastest of 8 products, large enough to be compute-bound; takes a fraction of a second."""
    size = 8192 if device.type == "cuda" else 768 if dtype == torch.float32 else 256
    # random numbers: on constant input a GPU draws less power and runs faster than in training
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        product(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # so that the peak is that of the run
    return 2 * size**3 / best


def memory_bandwidth(device: torch.device) -> float:
    """Measures memory bandwidth in bytes/s, reads plus writes: the higher of a copy and of a + s * b.

    Takes the best of several passes over arrays four times the size of the last-level cache. A CPU's reads of lines
    that it only overwrites are not counted. Takes a second at most.
    """
    size = 1 << 30 if device.type == "cuda" else min(max(4 * _last_level_cache(), 1 << 26), 1 << 29)
    a, b = (torch.ones(size // 4, device=device) for _ in range(2))
    out = torch.empty_like(a).fill_(0)  # maps the pages before timing starts
    passes = ((lambda: out.copy_(a), 2), (lambda: torch.add(a, b, alpha=0.5, out=out), 3))
    best, begin = 0.0, time.perf_counter()
    for _ in range(6):
        for once, arrays in passes:
            synchronize(device)
            start = time.perf_counter()
            once()
            synchronize(device)
            best = max(best, arrays * a.nbytes / (time.perf_counter() - start))
        if time.perf_counter() - begin > 1:
            break
    return best


def _last_level_cache() -> int:
    """Returns the bytes of the first CPU's largest cache; 32 MiB if the system does not report it."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0))
    return max(sizes, default=32 << 20)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Returns peak memory so far in bytes: allocated memory on a GPU, the resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: torch.device) -> dict[str, Any]:
    """Returns the inputs of a result beside the manifest: versions, machine, threads, variables, source commit."""
    prefixes = ("OMP_", "GOMP_", "MKL_", "TORCH", "TRITON", "CUDA", "CUBLAS", "NCCL", "KMP_", "SLURM_JOB")
    return {
        "ratrain": ratrain.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(prefixes)},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str | None:
    """Returns the commit of a source checkout, with a + if it has edits; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None
