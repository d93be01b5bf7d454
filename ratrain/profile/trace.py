"""Plain records of a torch profile: a tree of operations, their allocations, their spans on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.autograd import DeviceType


class Array(NamedTuple):
    """A tensor argument of an operation. `nbytes` is its readable size: expanded dimensions count once."""

    shape: tuple[int, ...]
    itemsize: int
    nbytes: int
    key: int = 0  # equal for two uses of one tensor


class Alloc(NamedTuple):
    """Memory allocated (size > 0) or freed at time `at`, ns."""

    at: int
    place: int
    size: int


class Span(NamedTuple):
    """GPU activity from `start` to `stop`, ns."""

    name: str
    start: int
    stop: int


@dataclass
class Op:
    """An operation, a graph's kernel or a marker on the CPU, from `start` to `stop`, ns, with all that it contains.

    `inputs` are in the order of its schema: an Array, a list of them, a plain value, or None for anything else.
    """

    name: str
    start: int
    stop: int
    inputs: tuple[Any, ...] = ()
    children: list[Op] = field(default_factory=list)
    allocs: list[Alloc] = field(default_factory=list)  # without those of its children
    spans: list[Span] = field(default_factory=list)  # GPU spans started by this operation itself, not by a child
    id: int = 0

    def walk(self) -> Iterator[Op]:
        """Yields the operation and all its descendants, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def read(results: Any, device: str = "cpu") -> Op:
    """Reads the tree of a finished profile (`torch.profiler.profile().profiler.kineto_results`) under a nameless root.

    Only allocations on `device` are included.
    """
    root = Op("", 0, 0)
    for event in results.experimental_event_tree():
        _add(event, root, device)
    by_id = {op.id: op for op in root.walk() if op.id}
    for event in results.events():
        if event.device_type() != DeviceType.CPU and not event.is_user_annotation():
            owner = by_id.get(event.linked_correlation_id(), root)
            owner.spans.append(Span(event.name(), event.start_ns(), event.start_ns() + event.duration_ns()))
    root.start = min((op.start for op in root.children), default=0)
    root.stop = max((op.stop for op in root.children), default=0)
    return root


def _add(event: Any, parent: Op, device: str) -> None:
    kind, fields = event.typed
    if kind.name == "Allocation":
        if fields.device.type != device:
            return
        parent.allocs.append(Alloc(event.start_time_ns, fields.ptr or 0, fields.alloc_size))
        return
    if kind.name == "TorchOp":
        inputs = tuple(_value(value) for value in fields.inputs)
        op = Op(event.name, event.start_time_ns, event.end_time_ns, inputs, id=event.correlation_id)
        parent.children.append(op)
        parent = op
    for child in event.children:  # driver calls and the like are no operations, but may contain some
        _add(child, parent, device)


def _value(value: Any) -> Any:
    if hasattr(value, "sizes"):
        shape, item = tuple(value.sizes), value.dtype.itemsize
        nbytes = item
        for size, stride in zip(shape, value.strides or (1,) * len(shape), strict=True):
            nbytes *= size if stride or not size else 1
        return Array(shape, item, nbytes, value.impl_ptr or 0)
    return [_value(entry) for entry in value] if isinstance(value, list) else value
