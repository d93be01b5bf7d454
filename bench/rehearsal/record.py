"""Records a step's GPU work: launches, bytes and FLOPs, by kernel and operation."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ratrain.kernels.adamw import op as adamw

MODEL, HEAD, OPTIMIZER = "model", "head", "optimizer"  # phases of a step
INDUCTOR, TRITON, ATEN = "inductor", "triton", "aten"  # origin of the kernel: Inductor, ratrain, torch
# operations that move no bytes of the device's memory
_FREE = re.compile(
    r"view|as_strided|permute|aten\.t\.|transpose|detach|slice|select|split|unbind|expand|alias|empty|unsqueeze|reshape|"
    r"lift_fresh|squeeze|unfold|is_same_size|set_|sym_|device|profiler|_local_scalar"
)
_UPDATED = {"linear_cross_entropy _rows_kernel": (0,)}  # arguments of ratrain's kernels that are read and written
_PRUNED = 0.55  # of a causal product: the share that remains if 0.382 of the keys are kept before each block of 128
# causal products of ratrain's attention kernels, one way and tied
_PRODUCTS = {
    "ra_attention _forward_kernel": (2, 3),
    "ra_attention _keys_kernel": (3, 4),
    "ra_attention _tokens_kernel": (2, 4),
    "kv_prune _sum_kernel": (1, 1),
    "kv_prune _mass_kernel": (1, 1),
    "kv_prune _attend_kernel": (2 * _PRUNED,) * 2,
    "kv_prune _queries_kernel": (3 * _PRUNED,) * 2,
    "kv_prune _keys_kernel": (4 * _PRUNED,) * 2,
}
_ONLY_WRITES = re.compile(r"_like|new_|zero_|fill_|zeros|ones|full")


@dataclass
class Work:
    """One kernel or operation of a step: its count, and its bytes and FLOPs in total."""

    name: str
    kind: str
    phase: str
    count: int = 0
    bytes: int = 0
    flops: int = 0


@dataclass
class Recorder:
    """Counts while it is `on`."""

    on: bool = False
    phase: str = MODEL
    work: dict[tuple[str, str], Work] = field(default_factory=dict)
    syncs: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)  # fakes that describe another tensor than their operation gives

    def clear(self) -> None:
        self.work, self.syncs, self.differing = {}, [], []

    def add(self, name: str, kind: str, n_bytes: int, flops: int = 0, *, launches: int = 1) -> None:
        if self.on:
            one = self.work.setdefault((self.phase, name), Work(name, kind, self.phase))
            one.count, one.bytes, one.flops = one.count + launches, one.bytes + n_bytes, one.flops + flops

    def launched(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Adds a Triton kernel, Inductor's or ratrain's: each tensor is read or written once, or both if updated in
        place."""
        from bench.rehearsal.fake_gpu import SOURCES

        if name not in SOURCES:
            moved = _bytes(arguments) + _bytes([arguments[i] for i in _UPDATED.get(name, ())])
            self.add(name, TRITON, moved, _flops(name, arguments, options))
            return
        signature = re.search(rf"def {name}\(([^)]*)\)", SOURCES[name])
        assert signature
        names = [word.partition(":")[0].strip() for word in signature[1].split(",")]
        twice = [x for key, x in zip(names, arguments, strict=False) if key.startswith("in_out")]
        self.add(name, INDUCTOR, _bytes(arguments) + _bytes(twice))

    def synced(self) -> None:
        """Notes a read of a number by the host, with its stack."""
        if self.on:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            self.syncs.append(" <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-6:-2])))

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Counts work inside the context in `phase`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False


def listen(recorder: Recorder, mode: FakeTensorMode) -> None:
    """Reports every operation in `mode` to `recorder`. Operations of ratrain run as on the GPU, including the launches
    of kernels, and are compared with their fakes."""
    dispatch: Any = FakeTensorMode.__torch_dispatch__
    inside = False  # an operation's own decomposition is not counted again

    def counted(self, function, types, args=(), kwargs=None):
        nonlocal inside
        if self is not mode or inside or not recorder.on or function.namespace == "ratrain":
            return dispatch(self, function, types, args, kwargs or {})
        if function.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
            function.name(), "CompositeImplicitAutograd"
        ):
            with self:  # below autograd, as inside an operation of ratrain, it arrives undecomposed
                return function.decompose(*args, **(kwargs or {}))
        inside = True
        try:
            out = dispatch(self, function, types, args, kwargs or {})
        finally:
            inside = False
        _note(recorder, function, args, kwargs or {}, out)
        return out

    mine: Any = FakeTensorMode
    mine.__torch_dispatch__ = counted
    kernel: Any = adamw.AdamW
    kernel._table = partialmethod(_table, recorder)
    for definition in list(OPDEFS.values()):
        if definition._qualname.startswith("ratrain::") and definition._abstract_fn is not None:
            _hold(recorder, definition)


def _table(self, recorder: Recorder, key: Any, moved: list[adamw.Moved], block: int) -> list[Tensor]:
    """Of addresses that fakes do not have; the kernel's launch has no tensors but it, so that theirs are noted here."""
    gradients = [one.gradient for one in moved] + [one.copy for one in moved]
    rest = [(one.parameter, one.exp_avg, one.exp_avg_sq) for one in moved]
    recorder.add("adamw _adamw_kernel", TRITON, _bytes(gradients) + 2 * _bytes(rest), launches=0)
    programs = sum(-(-one.parameter.numel() // block) for one in moved)
    return [torch.empty(n, dtype=torch.int32, device="cuda") for n in (6 * len(moved), programs, programs)]


def _flops(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> int:
    """FLOPs of an attention kernel of ratrain: causal products of q [B, H, T, D], its first argument, with T keys."""
    if (products := _PRODUCTS.get(name)) is None:
        return 0
    batch, n_head, n_token, head_dim = arguments[0].shape
    return round(products[bool(options.get("TIED"))] * batch * n_head * n_token**2 * head_dim)


def _note(recorder: Recorder, function: Any, args: Any, kwargs: Any, out: Any) -> None:
    name = str(function)
    if _FREE.search(name):
        return
    flops = flop_registry.get(function.overloadpacket)
    if "dtype" in function._overloadname:  # torch's formulas do not take the dtype argument of a product
        cost = flops(*_tensors(args), out_val=out) if flops else 0
    else:
        cost = flops(*args, **kwargs, out_val=out) if flops else 0
    if flops:
        shapes = (
            f"{'x'.join(map(str, x.shape))}{'f' if x.dtype == torch.float32 else ''}"
            for x in _tensors(args)[:3]
            if x.dim() > 1
        )
        name = " ".join((name, *shapes))
    recorder.add(name, ATEN, _traffic(function, args, kwargs, out), cost)


def _traffic(function: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that torch's operation reads and writes: a tensor updated in place counts twice."""
    if _ONLY_WRITES.search(str(function)):
        return _bytes(out)
    schema = function._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)
    updated = [given.get(a.name) for a in schema if a.alias_info and a.alias_info.is_write and a.name != "out"]
    twice = 0 if "copy_" in str(function) else _bytes(updated)
    return _bytes((args, kwargs, out)) + twice


def _hold(recorder: Recorder, definition: Any) -> None:
    fake: Callable[..., Any] = definition._abstract_fn
    real = definition._backend_fns.get("cuda") or definition._init_fn

    def both(*args: Any, **kwargs: Any) -> Any:
        promised = fake(*args, **kwargs)
        if recorder.on:
            phase = HEAD if definition._qualname == "ratrain::linear_cross_entropy" else recorder.phase
            with torch.no_grad(), recorder.within(phase):
                given = real(*args, **kwargs)
            for index, (one, other) in enumerate(zip(_tensors(promised), _tensors(given), strict=True)):
                if (told := _description(one)) != (seen := _description(other)):
                    recorder.differing.append(f"{definition._qualname} [{index}]: fake {told}, operation {seen}")
        return promised

    definition._abstract_fn = both


def _description(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.stride() if x.numel() else (), x.dtype, x.device.type


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tree: Any) -> int:
    """Bytes of all tensors in the tree, each counted once."""
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in _tensors(tree)}.values())


def total(work: Iterable[Work], kind: str | None = None) -> tuple[int, int]:
    """Launches and bytes, of one kind or of all."""
    chosen = [one for one in work if kind in (None, one.kind)]
    return sum(one.count for one in chosen), sum(one.bytes for one in chosen)
