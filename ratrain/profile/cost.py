"""FLOPs and bytes of an operation, from its arguments.

FLOPs are those of matrix products, exact, by torch's own formulas. Causal attention counts as if nothing were masked,
and elementwise operations count as zero. Bytes are the least number to read and write, every array once. They are exact
for products, in-place operations and operations that keep the memory they allocate. An operation that reads part of an
array, or an array twice, is counted as if it read all of it once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from ratrain.profile.trace import Array, Op

_ATTENTION = "_scaled_dot_product_"
# products by their name without namespace: the name of torch's formula, and its number of arrays
_FORMULAS = {"mm": ("mm", 2), "bmm": ("bmm", 2), "addmm": ("addmm", 3), "baddbmm": ("baddbmm", 3)}
_LINEAR = "mkldnn::_linear_pointwise"  # of oneDNN: x [.., K] and weight [N, K]
_GATHERS = ("embedding", "index_select", "gather", "index")  # read as much of the first array as they write
_OVERWRITES = ("fill_", "zero_", "copy_", "normal_", "uniform_")  # do not read their output


def name_of(op: Op) -> str:
    """Returns the operation's name without the namespaces aten and mkldnn."""
    return op.name.removeprefix("aten::").removeprefix("mkldnn::")


def is_attention(op: Op) -> bool:
    return op.name.startswith(f"aten::{_ATTENTION}") and op.name != "aten::_scaled_dot_product_attention_math"


def flops(op: Op) -> int | None:
    """Returns the FLOPs of a matrix product or an attention call; None for anything else."""
    arrays = [value for value in op.inputs if isinstance(value, Array)]
    try:
        if op.name == _LINEAR:
            x, weight = arrays[:2]
            return 2 * math.prod(x.shape) * weight.shape[0]
        formula, count = _formula(op)
        return formula(*(array.shape for array in arrays[:count])) if formula else None
    except (ValueError, TypeError, IndexError, AssertionError):  # a variant with another order of arguments
        return None


def _formula(op: Op) -> tuple[Any, int]:
    if not op.name.startswith("aten::"):
        return None, 0
    name = op.name.removeprefix("aten::")
    if is_attention(op):
        backward = name.endswith("_backward")
        # torch has no formula for the CPU variant, whose arguments are those of the GPU variant
        packet = getattr(torch.ops.aten, name.replace("_for_cpu", ""), None)
        return flop_registry.get(packet), 4 if backward else 3
    known, count = _FORMULAS.get(name.removesuffix("_"), (None, 0))
    return (flop_registry.get(getattr(torch.ops.aten, known)), count) if known else (None, 0)


def nbytes(op: Op) -> int | None:
    """Returns the bytes read and written; None if torch has no schema for the call."""
    written = _written(op.name, tuple(_kind(value) for value in op.inputs))
    if written is None:
        return None
    name = name_of(op)
    reads: dict[tuple, int] = {}
    writes = 0
    for index, value in enumerate(op.inputs):
        for array in _arrays(value):
            writes += array.nbytes if written.get(index) is not None else 0
            if written.get(index) != "out" and not (index == 0 and name in _OVERWRITES):
                reads[array.key or id(array), array.shape] = array.nbytes
    writes += kept(op)
    if not writes:
        return 0  # a view
    read = sum(reads.values())
    if name in _GATHERS and (first := next(iter(_arrays(op.inputs[0])), None)):
        read = min(read, read - first.nbytes + writes)
    return read + writes


def kept(op: Op) -> int:
    """Returns the bytes that the operation allocated and did not free: its results."""
    live: dict[int, int] = {}
    for alloc in sorted(alloc for part in op.walk() for alloc in part.allocs):
        if alloc.size > 0:
            live[alloc.place] = alloc.size
        else:
            live.pop(alloc.place, None)
    return sum(live.values())


def is_registered(name: str) -> bool:
    """Whether the name is that of an operation of torch or a library, not of a marker or wrapper."""
    return "::" in name and " " not in name and bool(_schemas(name))


@lru_cache(maxsize=1024)
def _schemas(name: str) -> list[Any]:
    return torch._C._jit_get_schemas_for_operator(name) if name.count("::") == 1 else []


@lru_cache(maxsize=4096)
def _written(name: str, kinds: tuple[str, ...]) -> dict[int, str] | None:
    """Returns, by index, the mode of each argument that a call writes: "out" (only written) or "in" (read before)."""
    for schema in _schemas(name):
        arguments = schema.arguments
        if len(arguments) == len(kinds) and all(map(_fits, arguments, kinds)):
            changed = {i: a for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write}
            return {i: "out" if a.is_out else "in" for i, a in changed.items()}
    return None


def _fits(argument: Any, kind: str) -> bool:
    text = str(argument.type)
    expected = "value" if "Tensor" not in text else "arrays" if "List[" in text else "array"
    return kind in (expected, "any")


def _kind(value: Any) -> str:
    if isinstance(value, Array):
        return "array"
    if isinstance(value, list):
        return "arrays" if any(isinstance(entry, Array) for entry in value) else "any"
    return "any" if value is None else "value"


def _arrays(value: Any) -> list[Array]:
    if isinstance(value, list):
        return [entry for entry in value if isinstance(entry, Array)]
    return [value] if isinstance(value, Array) else []
