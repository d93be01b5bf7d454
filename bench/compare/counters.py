"""Exact counters of a train step, equal in every run of the same code, so that a gate can use them.

`count` and `under_callgrind` run in a worker; `instructions` starts one under perf, else under valgrind's callgrind.
"""

from __future__ import annotations

import contextlib
import gc
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compare.worker import Arm, ArmError, Step

COUNTERS = {  # meaning of each, per step unless noted
    "graphs": "graphs that were compiled, with the warm-up",
    "graph_breaks": "breaks in them",
    "recompiles": "graphs compiled after the warm-up",
    "syncs": "reads of a value and shapes that depend on data, for which a host waits where there is a GPU",
    "allocated_bytes": "bytes asked for",
    "peak_bytes": "most bytes alive beyond those before it",
    "state_bytes": "parameters, buffers and the optimizer's state",
    "allocations": "times that memory was asked for",
    "ops": "operations that were dispatched",
    "kernels": "kernels in the compiled code",
    "python_calls": "calls of functions, of Python and from Python",
}
GATED = ("graphs", "graph_breaks", "recompiles", "syncs", "allocated_bytes", "peak_bytes", "state_bytes")
INSTRUCTIONS = "instructions"
# callgrind, 25 million of them: exactly equal from run to run; 0.06 % apart if the tree has another path
TOLERANCE = 1.002

_WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "cudaStreamSynchronize",
)
_NOT_OPS = ("autograd::", "torch::")  # the autograd engine's own records, besides the operations that it runs


def count(step: Step, device: str = "cpu") -> dict[str, int]:
    """Returns the COUNTERS of a warmed-up step; state_bytes only if the step has it."""
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    before = counters["stats"]["unique_graphs"]
    with _no_collection():
        seen = _dispatched(step)
        memory = _memory_of_gpu(step, device) if device.startswith("cuda") else seen.memory
        calls = _python_calls(step)
    graphs = counters["stats"]["unique_graphs"]
    told = {
        "graphs": graphs,
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompiles": graphs - before,
        "syncs": sum(seen.names[name] for name in _WAITS),
        **memory,
        "allocations": seen.allocations,
        "ops": sum(n for name, n in seen.names.items() if "::" in name and not name.startswith(_NOT_OPS)),
        "kernels": metrics.generated_kernel_count,
        "python_calls": calls,
    }
    if hasattr(step, "state_bytes"):
        told["state_bytes"] = step.state_bytes()  # pyright: ignore[reportFunctionMemberAccess]
    return {name: told[name] for name in COUNTERS if name in told}


@dataclass(frozen=True)
class _Seen:
    names: Counter[str]
    memory: dict[str, int]
    allocations: int


def _dispatched(step: Step) -> _Seen:
    """Runs torch's profiler over a step: operations by name, and memory allocated on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):  # a first profile contains memory allocated before it
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            step()
    events: list[Any] = list(profiler.profiler.kineto_results.events())  # pyright: ignore[reportOptionalMemberAccess]
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]  # freed: negative; in order of time
    live = peak = 0
    for size in sizes:
        live += size
        peak = max(peak, live)
    asked = [size for size in sizes if size > 0]
    memory = {"allocated_bytes": sum(asked), "peak_bytes": peak}
    return _Seen(Counter(event.name() for event in events), memory, len(asked))


def _memory_of_gpu(step: Step, device: str) -> dict[str, int]:
    import torch

    def total() -> int:
        return torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"]

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, held = total(), torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - held
    return {"allocated_bytes": total() - before, "peak_bytes": peak}


def _python_calls(step: Step) -> int:
    calls = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disables cyclic garbage collection, whose timing is irregular."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# instructions


def under_callgrind(step: Step, n: int) -> None:
    """Takes n steps counted by callgrind, in a process that runs under it and has counted nothing before."""
    import torch

    with _no_collection():
        torch._C._valgrind_toggle()
        for _ in range(n):
            step()
        torch._C._valgrind_toggle_and_dump_stats()


def instructions(arguments: Mapping[str, Any], source: Path | None, *, slow: bool, label: str = "") -> int | None:
    """Counts the instructions of a step in user space, by the processor's own counter; else, if `slow`, by callgrind,
    which takes minutes; None if neither is available. Raises ArmError."""
    # a random hash seed per process would change the order of sets and dicts
    given: dict[str, Any] = {
        "arguments": arguments, "source": source, "label": label, "environment": {"PYTHONHASHSEED": "0"},
    }  # fmt: skip
    if perf_counts():
        with Arm.start(**given) as arm:
            return _by_perf(arm, 50)
    return _by_callgrind(lambda prefix: Arm.start(**given, prefix=prefix), 3) if slow and has_callgrind() else None


def has_callgrind() -> bool:
    return shutil.which("valgrind") is not None


def perf_counts() -> bool:
    """Whether perf can read the processor's counter of instructions, which most virtual machines do not have."""
    if not shutil.which("perf"):
        return False
    tried = subprocess.run(["perf", "stat", *_PERF, "true"], capture_output=True, text=True, check=False)
    return tried.returncode == 0 and _read_perf(tried.stderr) is not None


_PERF = ("-e", "instructions:u", "-x", ",")


def _by_perf(arm: Arm, n: int) -> int:
    def counted(steps: int) -> int:
        perf = subprocess.Popen(["perf", "stat", *_PERF, "-p", str(arm.pid)], stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)  # until it has attached
        arm.step(steps)
        perf.send_signal(signal.SIGINT)
        found = _read_perf(perf.communicate()[1])
        if found is None:
            raise ArmError(f"{arm.label}: perf counted no instructions of process {arm.pid}")
        return found

    return (counted(2 * n) - counted(n)) // n  # the cost of a request is in both


def _read_perf(told: str) -> int | None:
    found = re.search(r"^(\d+),[^,]*,instructions", told, re.MULTILINE)
    return int(found[1]) if found else None


def _by_callgrind(start: Callable[[list[str]], Arm], n: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted"
        words = ["valgrind", "--tool=callgrind", "--quiet", "--collect-atstart=no", f"--callgrind-out-file={out}"]
        with start(words) as arm:
            arm.instructions(n)
        for file in sorted(Path(folder).iterdir()):
            found = re.search(r"^summary: (\d+)", file.read_text(errors="replace"), re.MULTILINE)
            if found and int(found[1]):
                return int(found[1]) // n
    raise ArmError(f"{arm.label}: callgrind left no count")
