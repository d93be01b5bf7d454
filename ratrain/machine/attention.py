"""Selects the attention backend: requested, recorded, or the fastest on this machine, measured once and cached.

FlexAttention is no candidate. For plain causal attention it runs flash's algorithm at 0.85 to 0.9 of the speed of
FlashAttention 2 (PyTorch, "FlexAttention", 2024). `flash` is FlashAttention 2, and cuDNN is faster than it on Hopper.
FlexAttention has no dropout, needs a mask tensor in every graph, and must be compiled before it can be timed.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ratrain import __version__
from ratrain.config.schema import Manifest
from ratrain.data.cache import alone, remembered
from ratrain.errors import UnavailableError
from ratrain.events import AttentionChosen, Emit, Notice
from ratrain.model.backends import FLASH, OURS, SDPA, activate, causal_attention
from ratrain.model.gpt2 import GPT2, Core

BACKENDS = (*SDPA, *FLASH, OURS)
_FLASH_PACKAGES = ("flash_attn_interface", "flash_attn")  # FlashAttention 3 and 4
TORCH = "torch"  # torch's own selection, made at each call from shape, dtype and device
_WARMUP, _ROUNDS = 3, 21  # passes of each backend
_HEAD_START = 10_000_000  # cycles that the GPU sleeps, a few milliseconds, while a pass is queued


@dataclass(frozen=True)
class Case:
    """The inputs of attention: q, k, v [B, H, T, D] of one dtype on one device, and the dropout rate."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    dropout: float
    device: torch.device

    @property
    def machine(self) -> str:
        """The name of the device, without its index."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def key(self) -> str:
        """Returns a JSON string of all that a measurement depends on."""
        versions = [__version__, torch.__version__, torch.version.cuda, torch.backends.cudnn.version()]
        how: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        if flash := [name for name in _FLASH_PACKAGES if importlib.util.find_spec(name)]:
            how["flash"] = flash  # a package installed later causes a new measurement
        what = {"shape": self.shape, "dtype": str(self.dtype), "dropout": self.dropout}
        return json.dumps({"device": self.machine, "versions": versions, **how, **what})

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} {list(self.shape)}" + (f" with dropout {self.dropout:g}" if self.dropout else "")


@dataclass(frozen=True)
class Choice:
    """The backend of a run; `order` lists the backends to try, this one first, and is empty if torch selects."""

    backend: str
    source: str  # as in AttentionChosen
    machine: str
    case: str
    order: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # of a forward and backward pass, by backend

    def event(self) -> AttentionChosen:
        return AttentionChosen(self.backend, self.source, f"{self.case} on {self.machine}", dict(self.seconds))

    def record(self) -> dict[str, Any]:
        """Returns the choice as plain values for a checkpoint."""
        return {**vars(self), "order": list(self.order), "seconds": dict(self.seconds)}


def recorded(record: Mapping[str, Any]) -> Choice:
    """Returns the choice from the record in a checkpoint, with source "recorded"."""
    return Choice(**{**record, "order": tuple(record["order"]), "source": "recorded"})


def require(manifest: Manifest, *, rows: int, device: torch.device) -> None:
    """Raises UnavailableError if `strict` is on and the requested backend cannot run passes of `rows` sequences."""
    case, section = _case(manifest, rows, device), manifest.compile
    if section.strict and section.attention != "auto" and not serves(case, section.attention):
        able = ", ".join(name for name in BACKENDS if serves(case, name))
        raise UnavailableError(
            f"{_unable(section.attention, case)}; {able} can; compile.strict = false continues with another"
        )


def _unable(wanted: str, case: Case) -> str:
    return f"compile.attention: {wanted!r} cannot compute {case} on {case.machine}"


def choose(
    manifest: Manifest, *, rows: int, device: torch.device, emit: Emit = lambda event: None, known: Choice | None = None
) -> Choice:
    """Selects the backend for passes of `rows` sequences; `known` is the choice recorded by the run.

    On a GPU `auto` measures the backends. On a CPU it leaves the selection to torch, which is deterministic; with a
    measurement, timing noise would decide the bits of the result. Raises UnavailableError as `require` does.
    """
    require(manifest, rows=rows, device=device)
    case, wanted = _case(manifest, rows, device), manifest.compile.attention
    if wanted != "auto" and serves(case, wanted):
        order = dict.fromkeys((wanted, "math"))  # math, for other attention calls of a patch
        return Choice(wanted, "asked", case.machine, str(case), tuple(order))
    if wanted != "auto":
        emit(Notice(f"{_unable(wanted, case)}: continues as with 'auto'", "warning"))
    if device.type == "cpu":
        return Choice(TORCH, "default", case.machine, str(case))
    if known is not None and known.machine == case.machine:
        return known
    return fastest(case)


def pin(model: GPT2, choice: Choice, *, strict: bool = False) -> None:
    """Sets the backend order of every attention core; `strict` allows the chosen backend only.

    Must be called before the model is compiled.
    """
    if model.wte.weight.device.type == "cuda":
        # at its first call torch sets its own order and overrides any that was set before
        q = torch.zeros(1, 1, 1, 8, device=model.wte.weight.device)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    activate(choice.backend)
    for part in model.modules():
        if isinstance(part, Core):
            part.backends = choice.order[:1] if strict else choice.order


def unpin(model: GPT2) -> None:
    """Lets torch select the backend of every call again, as for decoding, whose shapes were not measured."""
    for part in model.modules():
        if isinstance(part, Core):
            part.backends = ()


def _case(manifest: Manifest, rows: int, device: torch.device) -> Case:
    spec = manifest.model
    dtype = torch.float32 if manifest.train.precision == "fp32" else torch.bfloat16
    return Case((rows, spec.n_head, spec.block_size, spec.head_dim), dtype, spec.dropout, device)


# -- measurement --------------------------------------------------------------------------------------------------


def fastest(case: Case) -> Choice:
    """Returns the fastest backend by a cached measurement, else by a new one, which is cached on disk.

    Processes measure one after the other: the second reads the first one's result, so that the arms of a study agree.
    """
    fresh: list[dict[str, float]] = []

    def compute() -> dict[str, float]:
        fresh.append(measure(case))
        return fresh[0]

    with alone("attention"):
        seconds = remembered("attention", case.key(), compute, sound=_sound)
    ranked = sorted(seconds, key=lambda name: seconds[name])
    # OURS only as the first choice; math comes last: it is slow, stores all scores, and supports every case
    others = [name for name in ranked[1:] if name not in (OURS, "math", *FLASH)]
    order = dict.fromkeys([*ranked[:1], *others, "math"]) if ranked else ()
    source = "measured" if fresh else "cached"
    return Choice(ranked[0] if ranked else TORCH, source, case.machine, str(case), tuple(order), seconds)


def _sound(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(k in BACKENDS and isinstance(s, float) and s > 0 for k, s in value.items())


def measure(case: Case) -> dict[str, float]:
    """Measures the median seconds of a forward and backward pass by each usable backend.

    The backends run in rounds, so that drift affects all of them alike.
    """
    with _aside(case.device), _flash_restored():
        passes = {name: one for name in BACKENDS if (one := _pass(case, name)) is not None}
        for one in passes.values():
            for _ in range(_WARMUP):
                one()
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(_ROUNDS):
            for name, one in passes.items():
                seconds[name].append(_timed(one, case.device))
    return {name: statistics.median(times) for name, times in seconds.items()}


def serves(case: Case, name: str) -> bool:
    """Returns whether a backend can compute the case by itself, forward and backward."""
    with _aside(case.device), _flash_restored():
        return _pass(case, name) is not None


@contextmanager
def _flash_restored() -> Iterator[None]:
    """Restores torch's own flash attention at exit, after any implementation was tried."""
    try:
        yield
    finally:
        activate(TORCH)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Isolates the block from the run: restores random generators, frees cached memory and resets its peak."""
    if device.type != "cuda":
        with torch.random.fork_rng([]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng([device]):
        yield
    torch.cuda.empty_cache()  # math stores all scores
    torch.cuda.reset_peak_memory_stats(device)


def _pass(case: Case, name: str) -> Callable[[], None] | None:
    """Returns a function that runs a forward and backward pass as the model does, from the packed projection to flat
    heads; None if the backend cannot compute the case."""
    batch, n_head, n_token, head_dim = case.shape
    generator = torch.Generator(case.device).manual_seed(0)
    place = {"device": case.device, "dtype": case.dtype}
    packed = torch.empty(batch, n_token, 3, n_head, head_dim, **place).normal_(generator=generator).requires_grad_()
    grad = torch.ones(batch, n_token, n_head * head_dim, **place)

    def once() -> None:
        activate(name)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        y = causal_attention(q, k, v, backends=(name,), dropout=case.dropout)
        torch.autograd.grad(y.transpose(1, 2).flatten(2), packed, grad)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns why each of its kernels cannot run
        try:
            once()
        except Exception:  # unsupported, out of memory, no Triton: another backend can run
            return None
    return once


def _timed(once: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        once()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # the GPU sleeps while the pass is queued; otherwise a short pass would measure Python's launch time
    torch.cuda._sleep(_HEAD_START)
    begin.record()
    once()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
