"""Exact counters of a train step, equal in every run of the same code, so that a gate can use them.

They are counted in a worker, which may be of an old tree: this file imports nothing of ratrain.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Step = Callable[[], object]

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
INSTRUCTIONS = "instructions"
# counters that fail a comparison if they grow, and the largest ratio of new to old. Of instructions, by callgrind, 25
# million are equal from run to run, but 0.06 % apart if the tree has another path
GATED = {
    **dict.fromkeys(("graphs", "graph_breaks", "recompiles", "syncs"), 1.0),
    **dict.fromkeys(("allocated_bytes", "peak_bytes", "state_bytes"), 1.0),
    INSTRUCTIONS: 1.002,
}

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


def under_callgrind(step: Step, n: int) -> None:
    """Takes n steps counted by callgrind, in a process that runs under it and has counted nothing before."""
    import torch

    with _no_collection():
        torch._C._valgrind_toggle()
        for _ in range(n):
            step()
        torch._C._valgrind_toggle_and_dump_stats()
