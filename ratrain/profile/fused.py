"""What Inductor knows of the kernels that it makes: the arrays each one reads and writes.

A fused kernel comes to the profiler without shapes, and on a CPU only when Inductor is told to announce each. What it
moves is asked of Inductor's scheduler while the code is made: the arrays from outside the kernel, read once each, and
those that outlive it, written once. An estimate from below: a kernel that goes over an array twice may fetch it twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch._functorch.config
import torch._inductor.config


class Figures:
    """Bytes that each fused kernel moves, by its name in a trace; a GPU's forward and backward graphs share names."""

    def __init__(self):
        self._bytes: dict[tuple[str, bool], int | None] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, name: str, *, backward: bool, nbytes: int | None) -> None:
        known = self._bytes.get((name, backward), nbytes)
        self._bytes[name, backward] = nbytes if known == nbytes else None  # two graphs use the name: neither is meant

    def nbytes(self, name: str, *, backward: bool) -> int | None:
        """None where Inductor has told nothing, or told two things."""
        return self._bytes.get((name, backward))


@contextmanager
def announced() -> Iterator[Figures]:
    """In it graphs are compiled whose kernels show in a trace one by one, and told of in what it yields.

    A graph that is found in the cache runs no scheduler: none is taken from there. Compiled kernels still are, so that
    the second time costs seconds. What a version of torch does not offer leaves kernels untold.
    """
    figures = Figures()
    with ExitStack() as stack:
        stack.enter_context(torch._inductor.config.patch({"cpp.enable_kernel_profile": True, "fx_graph_cache": False}))
        stack.enter_context(torch._functorch.config.patch({"enable_autograd_cache": False}))
        for owner in _schedulings():
            stack.enter_context(_listening(owner, figures))
        yield figures


def _schedulings() -> Iterator[Any]:
    """What makes kernels for CPUs and for GPUs, where this torch has it."""
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
    except Exception:  # Inductor's inside, which changes from version to version: the step is profiled without
        return


def _moved(nodes: Iterable[Any], removed: Iterable[str]) -> int:
    """Bytes of the arrays that come from outside these nodes, and of those that they leave behind."""
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    for node in nodes:
        if not hasattr(node, "get_read_write_buffer_accesses"):
            continue  # a marker of a loop's begin or end in a GPU kernel's schedule
        for into, read in ((reads, True), (writes, False)):
            for name, size in node.get_read_write_buffer_accesses(include_reads=read, include_writes=not read).items():
                into[name] = max(size, into.get(name, 0))
    gone = set(removed)
    read = sum(size for name, size in reads.items() if name not in writes and name not in gone)
    return int(read + sum(size for name, size in writes.items() if name not in gone))
