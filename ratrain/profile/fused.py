"""Bytes that Inductor's fused kernels read and write, taken from its scheduler.

A fused kernel appears in a profile without shapes, and on a CPU only with Inductor's `enable_kernel_profile`. Its
bytes come from Inductor's scheduler during code generation: the arrays from outside the kernel, read once each, and the
arrays that outlive it, written once. This is a lower bound: a kernel that passes over an array twice may fetch it
twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch._functorch.config
import torch._inductor.config


class Figures:
    """Bytes moved by each fused kernel, by its name in a trace and by pass: on a GPU, forward and backward graphs share
    names."""

    def __init__(self):
        self._bytes: dict[tuple[str, bool], int | None] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, name: str, *, backward: bool, nbytes: int | None) -> None:
        known = self._bytes.get((name, backward), nbytes)
        self._bytes[name, backward] = nbytes if known == nbytes else None  # two graphs share the name: ambiguous

    def nbytes(self, name: str, *, backward: bool) -> int | None:
        """Returns the bytes of a kernel; None if they are unknown or ambiguous."""
        return self._bytes.get((name, backward))


@contextmanager
def announced() -> Iterator[Figures]:
    """Makes the kernels of graphs compiled in the block visible in a trace, and yields the Figures of their bytes.

    A graph from the cache runs no scheduler, so the graph caches are off. Compiled kernels still come from their cache,
    so that the second time costs seconds. If this version of torch lacks the hooks, the bytes stay unknown.
    """
    figures = Figures()
    with ExitStack() as stack:
        stack.enter_context(torch._inductor.config.patch({"cpp.enable_kernel_profile": True, "fx_graph_cache": False}))
        stack.enter_context(torch._functorch.config.patch({"enable_autograd_cache": False}))
        for owner in _schedulings():
            stack.enter_context(_listening(owner, figures))
        yield figures


def _schedulings() -> Iterator[Any]:
    """Yields Inductor's scheduling classes for CPUs and GPUs that exist in this torch and have the hook."""
    for module, name in (("cpp", "CppScheduling"), ("triton", "TritonScheduling")):
        with suppress(ImportError):
            owner = getattr(importlib.import_module(f"torch._inductor.codegen.{module}"), name, None)
            if hasattr(owner, "codegen_comment"):
                yield owner


@contextmanager
def _listening(owner: Any, figures: Figures) -> Iterator[None]:
    original = owner.codegen_comment

    def codegen_comment(self, node_schedule, kernel_name=None, *rest, **named):
        if kernel_name:
            _tell(figures, kernel_name, node_schedule)
        return original(self, node_schedule, *([kernel_name] if kernel_name else []), *rest, **named)

    owner.codegen_comment = codegen_comment
    try:
        yield
    finally:
        owner.codegen_comment = original


def _tell(figures: Figures, kernel: str, nodes: Iterable[Any]) -> None:
    from torch._inductor.virtualized import V

    try:
        graph = V.graph
        name = kernel if graph.graph_id is None or not kernel.startswith("cpp") else f"graph_{graph.graph_id}_{kernel}"
        figures.add(name, backward=bool(graph.is_backward), nbytes=_moved(nodes, graph.removed_buffers))
    except Exception:  # Inductor internals change between versions; the step is profiled without these bytes
        return


def _moved(nodes: Iterable[Any], removed: Iterable[str]) -> int:
    """Returns the bytes of the arrays that these nodes read from outside, and of the arrays that outlive them."""
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    for node in nodes:
        if not hasattr(node, "get_read_write_buffer_accesses"):
            continue  # a loop begin or end marker in a GPU kernel's schedule
        for into, read in ((reads, True), (writes, False)):
            for name, size in node.get_read_write_buffer_accesses(include_reads=read, include_writes=not read).items():
                into[name] = max(size, into.get(name, 0))
    gone = set(removed)
    read = sum(size for name, size in reads.items() if name not in writes and name not in gone)
    return int(read + sum(size for name, size in writes.items() if name not in gone))
