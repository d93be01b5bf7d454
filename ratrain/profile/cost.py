"""What an operation computes and moves, from what it was given.

FLOPs are those of matrix products, exact, by torch's own formulas; causal attention counts as if nothing were masked,
and everything elementwise counts as nothing. Bytes are what must be read and written at least, every array once. They
are exact for products, in-place operations and whatever keeps the memory it allocates; an operation that reads part of
an array, or goes over one twice, is counted as if it read all of it once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from ratrain.profile.trace import Array, Op

_ATTENTION = "_scaled_dot_product_"
# products by the name without its namespace: the formula of torch's to use, and how many arrays it takes
_FORMULAS = {"mm": ("mm", 2), "bmm": ("bmm", 2), "addmm": ("addmm", 3), "baddbmm": ("baddbmm", 3)}
_LINEAR = "mkldnn::_linear_pointwise"  # oneDNN's, x [.., K] and weight [N, K]
_GATHERS = ("embedding", "index_select", "gather", "index")  # read as much of the first array as they write
_OVERWRITES = ("fill_", "zero_", "copy_", "normal_", "uniform_")  # do not read what they write to


def name_of(op: Op) -> str:
    """Without the namespace of torch's own operations."""
    return op.name.removeprefix("aten::").removeprefix("mkldnn::")


def is_attention(op: Op) -> bool:
    return op.name.startswith(f"aten::{_ATTENTION}") and op.name != "aten::_scaled_dot_product_attention_math"


def flops(op: Op) -> int | None:
    """Of a matrix product, or an attention call; None of anything else."""
    arrays = [value for value in op.inputs if isinstance(value, Array)]
    try:
        if op.name == _LINEAR:
            x, weight = arrays[:2]
            return 2 * math.prod(x.shape) * weight.shape[0]
        formula, count = _formula(op)
        return formula(*(array.shape for array in arrays[:count])) if formula else None
    except (ValueError, TypeError, IndexError, AssertionError):  # a variant whose arguments stand otherwise
        return None


def _formula(op: Op) -> tuple[Any, int]:
    if not op.name.startswith("aten::"):
        return None, 0
    name = op.name.removeprefix("aten::")
    if is_attention(op):
        backward = name.endswith("_backward")
        # torch has none for the one on CPUs, which is called as the one on GPUs is
        packet = getattr(torch.ops.aten, name.replace("_for_cpu", ""), None)
        return flop_registry.get(packet), 4 if backward else 3
    known, count = _FORMULAS.get(name.removesuffix("_"), (None, 0))
    return (flop_registry.get(getattr(torch.ops.aten, known)), count) if known else (None, 0)


def nbytes(op: Op) -> int | None:
    """Read and written; None where torch has no schema for the call."""
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
    """Bytes that were allocated in it and not given back in it: its results."""
    live: dict[int, int] = {}
    for alloc in sorted(alloc for part in op.walk() for alloc in part.allocs):
        if alloc.size > 0:
            live[alloc.place] = alloc.size
        else:
            live.pop(alloc.place, None)
    return sum(live.values())


def is_registered(name: str) -> bool:
    """Whether it is an operation of torch's, or of a library's, and no marker or wrapper."""
    return "::" in name and " " not in name and bool(_schemas(name))


@lru_cache(maxsize=1024)
def _schemas(name: str) -> list[Any]:
    return torch._C._jit_get_schemas_for_operator(name) if name.count("::") == 1 else []


@lru_cache(maxsize=4096)
def _written(name: str, kinds: tuple[str, ...]) -> dict[int, str] | None:
    """By its index, how each argument that a call changes is written: "out" (only) or "in" (read before)."""
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
