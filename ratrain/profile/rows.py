"""The rows of the table: the parts of a step by phase and operation, adding up to the time of the step."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ratrain.profile import cost
from ratrain.profile.fused import Figures
from ratrain.profile.trace import Array, Op, Span

DATA, FORWARD, BACKWARD, CLIP, OPTIMIZER = "data", "forward", "backward", "clip", "optimizer"
GAPS = "Python and gaps"
PHASES = (DATA, FORWARD, BACKWARD, CLIP, OPTIMIZER, GAPS)
MARK = "ratrain.profile: "  # prefix of every marker's name
WINDOW = "steps"  # the marker around all steps

_FUSED = re.compile(r"(?:graph_(\d+)_)?(cpp|triton)_(?:(?:poi|per|red|for|tem|fused)_)*(.*?)_?(\d+)?$")


@dataclass(frozen=True)
class Row:
    """The totals of one kind of operation in a mean step. `bytes` None: unknown; `flops` None: unknown, or no product.

    `name` is the name in the table, `trace_name` the name in the trace.
    """

    phase: str
    name: str
    trace_name: str
    calls: float
    seconds: float
    flops: float | None = None
    bytes: float | None = None
    is_attention: bool = False


@dataclass(frozen=True)
class Work:
    """An operation that the table counts as a whole with its descendants, or a wrapper, counted without its
    children."""

    op: Op
    phase: str
    inside: str = ""  # the custom operation around it
    is_wrapper: bool = False

    @property
    def name(self) -> str:
        if self.is_wrapper:
            return f"{self.phase}: {_wrapper(self.op.name)}" if self.phase != GAPS else "between phases"
        return label(self.op) + (f" ({self.inside})" if self.inside else "")

    def nanoseconds(self, *, on_gpu: bool) -> int:
        """Returns the time on the CPU, or with `on_gpu` the time of all GPU spans that it started."""
        if on_gpu:
            return 0 if self.is_wrapper else sum(span.stop - span.start for op in self.op.walk() for span in op.spans)
        below = sum(child.stop - child.start for child in self.op.children) if self.is_wrapper else 0
        return self.op.stop - self.op.start - below


@dataclass(frozen=True)
class Marked:
    """The phases over time, from markers that are nested or side by side."""

    spans: tuple[Span, ...]

    def phase(self, at: int) -> str:
        """Returns the phase of the innermost marker at a time; GAPS outside of all markers."""
        edges, phases = self._segments
        return phases[bisect.bisect_right(edges, at)]

    @cached_property
    def _segments(self) -> tuple[list[int], list[str]]:
        """All begins and ends of markers, and the phases before, between and after them."""
        edges = sorted({edge for span in self.spans for edge in span[1:]})
        phases = [GAPS]
        for at in edges:
            inner = [span for span in self.spans if span.start <= at < span.stop]
            phases.append(_marker(min(inner, key=lambda span: span.stop - span.start).name if inner else WINDOW))
        return edges, phases


def _marker(name: str) -> str:
    """Returns the phase of a marker; GAPS for the marker around all steps."""
    return GAPS if name == WINDOW else name


def marked(root: Op) -> Marked:
    """Collects the markers of a tree."""
    marks = [op for op in root.walk() if op.name.startswith(MARK)]
    return Marked(tuple(Span(op.name.removeprefix(MARK), op.start, op.stop) for op in marks))


def window(root: Op) -> Op:
    """Finds the marker around all steps."""
    return next(op for op in root.walk() if op.name == MARK + WINDOW)


def works(root: Op, marks: Marked) -> Iterator[Work]:
    """Yields the operations counted as a whole, in the order of time: calls without a product below them, products,
    fused kernels."""
    return (work for work in _split(root, marks, "") if not work.is_wrapper)


def split(root: Op, marks: Marked) -> list[Work]:
    """Splits all of the root's time into operations counted as a whole and the own time of the wrappers around them."""
    return list(_split(root, marks, ""))


def _split(op: Op, marks: Marked, inside: str) -> Iterator[Work]:
    phase = _marker(op.name.removeprefix(MARK)) if op.name.startswith(MARK) else marks.phase(op.start)
    if _is_whole(op):
        yield Work(op, phase, inside)
        return
    yield Work(op, phase, inside, is_wrapper=True)
    is_custom = cost.is_registered(op.name) and not op.name.startswith("aten::")
    within = op.name.partition("::")[2] if is_custom else inside
    for span in op.spans:  # a custom operation's own kernels beside its products, or kernels without a known owner
        at = op.start if op.name else span.start
        yield Work(Op(span.name, at, at, spans=[span]), marks.phase(at), within)
    for child in op.children:
        yield from _split(child, marks, within)


def _is_whole(op: Op) -> bool:
    if cost.flops(op) is not None or is_fused(op.name):
        return True
    if not cost.is_registered(op.name):
        return False
    below = (part for child in op.children for part in child.walk())
    return not any(cost.flops(part) is not None or is_fused(part.name) for part in below)


def is_fused(name: str) -> bool:
    """Whether the name is that of a kernel generated by Inductor."""
    return bool(re.match(r"(graph_\d+_)?(cpp|triton)_", name))


def label(op: Op) -> str:
    """Returns the name for the table: a product with its shapes, a fused kernel with its fused operations."""
    shapes = ["x".join(map(str, value.shape)) for value in op.inputs if isinstance(value, Array)]
    name = cost.name_of(op)
    if is_fused(op.name) and (found := _FUSED.match(op.name)):
        graph, _, parts, number = found.groups()
        words = parts.replace("native_", "").replace("_scaled_dot_product_", "").replace("_for_cpu", "")
        return f"fused {words or 'kernel'} #{'' if graph is None else graph + '.'}{number or 0}"
    if cost.is_attention(op):
        query = shapes[1 if name.endswith("_backward") else 0]
        return f"{name.removeprefix('_scaled_dot_product_').replace('_for_cpu', '')} {query}"
    if cost.flops(op) is None:
        return name
    if name == "_linear_pointwise":
        return f"linear {shapes[0]} @ {'x'.join(reversed(shapes[1].split('x')))}"
    first = 1 if "add" in name else 0
    return f"{name} {shapes[first]} @ {shapes[first + 1]}"


def rows(found: Sequence[Work], *, steps: int, figures: Figures, total: int, on_gpu: bool) -> list[Row]:
    """Builds rows that add up to `total` ns a step: the rows of the work, and the time outside of it.

    On a CPU, `found` is the split of all steps, and the time outside of work is the own time of wrappers. On a GPU, the
    time of work is that of its GPU spans. The rest is the GPU's idle time, negative if streams overlap.
    """
    groups: defaultdict[tuple[str, str], list[Work]] = defaultdict(list)
    for work in found:
        groups[_phase(work), work.name].append(work)
    made = [_row(group, steps=steps, figures=figures, on_gpu=on_gpu) for group in groups.values()]
    made = [row for row in made if row.seconds]
    if on_gpu:
        return [*made, Row(GAPS, "GPU idle", "", 0, total / 1e9 - sum(row.seconds for row in made))]
    return made


def _phase(work: Work) -> str:
    """Returns the phase of work in the table: GAPS for wrappers, except for the sampler, which is numpy alone."""
    return GAPS if work.is_wrapper and work.phase != DATA else work.phase


def _row(group: Sequence[Work], *, steps: int, figures: Figures, on_gpu: bool) -> Row:
    first = group[0]
    seconds = sum(work.nanoseconds(on_gpu=on_gpu) for work in group) / 1e9 / steps
    if first.is_wrapper:
        name = "sampler" if first.phase == DATA else first.name
        return Row(_phase(first), name, first.op.name, len(group) / steps, seconds)
    flops = [cost.flops(work.op) for work in group]
    moved = [_moved(work, figures) for work in group]
    return Row(
        first.phase,
        first.name,
        first.op.name,
        len(group) / steps,
        seconds,
        None if None in flops else sum(f for f in flops if f is not None) / steps,
        None if None in moved else sum(b for b in moved if b is not None) / steps,
        cost.is_attention(first.op),
    )


def _moved(work: Work, figures: Figures) -> int | None:
    if is_fused(work.op.name):
        return figures.nbytes(work.op.name, backward=work.phase == BACKWARD)
    return cost.nbytes(work.op)


def _wrapper(name: str) -> str:
    """Returns the name of a wrapper for the table."""
    known = (
        (MARK, "Python outside of operations"),
        ("## Call CompiledFxGraph", "Python of compiled graphs, allocation"),
        ("CompiledFunction", "Python of compiled graphs, autograd"),
        ("AOTDispatcher", "Python of compiled graphs, autograd"),
        ("Torch-Compiled Region", "Dynamo"),
        ("TorchDynamo Cache Lookup", "Dynamo's guards"),
        ("Pregraph bytecode", "Dynamo"),
        ("autograd::engine", "autograd engine"),
        ("torch::autograd::", "autograd engine"),
        ("GeneratedBackwardFor_", "Python of custom operations"),
        ("ratrain::", "Python of custom operations"),
        ("Optimizer.", "Python of the optimizer"),
    )
    told = next((told for start, told in known if name.startswith(start)), None)
    return told or ("autograd engine" if name.endswith(("Backward", "Backward0")) else name.removeprefix("aten::"))
