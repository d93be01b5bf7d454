"""Which backend computes attention: as asked for, as recorded, or the fastest here, measured once and kept.

FlexAttention is no candidate. For plain causal attention it runs flash's algorithm at 0.85 to 0.9 of FlashAttention 2
(PyTorch, "FlexAttention", 2024), which `flash` is and cuDNN beats on Hopper; it has no dropout, needs a mask tensor in
every graph, and must itself be compiled before it can be timed.
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
TORCH = "torch"  # its own choice, made anew for each call from shape, dtype and device
_WARMUP, _ROUNDS = 3, 21  # passes of each backend
_HEAD_START = 10_000_000  # cycles that a GPU sleeps, some milliseconds, while a pass is put in its queue


@dataclass(frozen=True)
class Case:
    """What attention is asked to compute: q, k, v [B, H, T, D] of one dtype on one device."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    dropout: float
    device: torch.device

    @property
    def machine(self) -> str:
        """What the device is, whatever its number."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def key(self) -> str:
        """All that a measurement depends on."""
        versions = [__version__, torch.__version__, torch.version.cuda, torch.backends.cudnn.version()]
        how: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
        if flash := [name for name in _FLASH_PACKAGES if importlib.util.find_spec(name)]:
            how["flash"] = flash  # installed later, it is measured then
        what = {"shape": self.shape, "dtype": str(self.dtype), "dropout": self.dropout}
        return json.dumps({"device": self.machine, "versions": versions, **how, **what})

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} {list(self.shape)}" + (f" with dropout {self.dropout:g}" if self.dropout else "")


@dataclass(frozen=True)
class Choice:
    """The backend of a run; `order` is what is tried, the backend first, and empty where torch chooses."""

    backend: str
    source: str  # as in AttentionChosen
    machine: str
    case: str
    order: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # of a forward and a backward pass, by backend

    def event(self) -> AttentionChosen:
        return AttentionChosen(self.backend, self.source, f"{self.case} on {self.machine}", dict(self.seconds))

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {**vars(self), "order": list(self.order), "seconds": dict(self.seconds)}


def recorded(record: Mapping[str, Any]) -> Choice:
    """The choice that a checkpoint keeps."""
    return Choice(**{**record, "order": tuple(record["order"]), "source": "recorded"})


def require(manifest: Manifest, *, rows: int, device: torch.device) -> None:
    """Raises UnavailableError where `strict` and the backend asked for cannot serve passes of `rows` sequences."""
    case, section = _case(manifest, rows, device), manifest.compile
    if section.strict and section.attention != "auto" and not serves(case, section.attention):
        able = ", ".join(name for name in BACKENDS if serves(case, name))
        raise UnavailableError(
            f"{_unable(section.attention, case)}; {able} can; compile.strict = false goes on without"
        )


def _unable(wanted: str, case: Case) -> str:
    return f"compile.attention: {wanted!r} cannot compute {case} on {case.machine}"


def choose(
    manifest: Manifest, *, rows: int, device: torch.device, emit: Emit = lambda event: None, known: Choice | None = None
) -> Choice:
    """The backend for passes of `rows` sequences; `known` is what the run has recorded.

    `auto` measures on a GPU. On a CPU it leaves torch its own choice, which depends on nothing that varies: a measured
    one would let noise decide the bits. Raises UnavailableError as `require` does.
    """
    require(manifest, rows=rows, device=device)
    case, wanted = _case(manifest, rows, device), manifest.compile.attention
    if wanted != "auto" and serves(case, wanted):
        order = dict.fromkeys((wanted, "math"))  # math, for what a patch may ask beside
        return Choice(wanted, "asked", case.machine, str(case), tuple(order))
    if wanted != "auto":
        emit(Notice(f"{_unable(wanted, case)}: goes on as with 'auto'", "warning"))
    if device.type == "cpu":
        return Choice(TORCH, "default", case.machine, str(case))
    if known is not None and known.machine == case.machine:
        return known
    return fastest(case)


def pin(model: GPT2, choice: Choice, *, strict: bool = False) -> None:
    """Has every core of the model use the choice; `strict`: and nothing else. To be called before it is compiled."""
    if model.wte.weight.device.type == "cuda":
        # torch sets an order of its own at its first call, over any that it was given before
        q = torch.zeros(1, 1, 1, 8, device=model.wte.weight.device)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    activate(choice.backend)
    for part in model.modules():
        if isinstance(part, Core):
            part.backends = choice.order[:1] if strict else choice.order


def unpin(model: GPT2) -> None:
    """Leaves every call to torch again, as for decoding, whose shapes nobody has chosen for."""
    for part in model.modules():
        if isinstance(part, Core):
            part.backends = ()


def _case(manifest: Manifest, rows: int, device: torch.device) -> Case:
    spec = manifest.model
    dtype = torch.float32 if manifest.train.precision == "fp32" else torch.bfloat16
    return Case((rows, spec.n_head, spec.block_size, spec.head_dim), dtype, spec.dropout, device)


# -- measurement --------------------------------------------------------------------------------------------------


def fastest(case: Case) -> Choice:
    """By what is kept on disk of an earlier measurement, else by a measurement, which is kept.

    Processes measure one after the other: the second finds what the first has kept, so that the arms of a study agree.
    """
    fresh: list[dict[str, float]] = []

    def compute() -> dict[str, float]:
        fresh.append(measure(case))
        return fresh[0]

    with alone("attention"):
        seconds = remembered("attention", case.key(), compute, sound=_sound)
    ranked = sorted(seconds, key=lambda name: seconds[name])
    # ours counts where it comes first; math is slow, needs memory for all scores, and serves everything
    others = [name for name in ranked[1:] if name not in (OURS, "math", *FLASH)]
    order = dict.fromkeys([*ranked[:1], *others, "math"]) if ranked else ()
    source = "measured" if fresh else "cached"
    return Choice(ranked[0] if ranked else TORCH, source, case.machine, str(case), tuple(order), seconds)


def _sound(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(k in BACKENDS and isinstance(s, float) and s > 0 for k, s in value.items())


def measure(case: Case) -> dict[str, float]:
    """Median seconds of a forward and a backward pass by each backend that serves, in rounds so that drift hits all."""
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
    """Whether a backend by itself can compute the case, forward and backward."""
    with _aside(case.device), _flash_restored():
        return _pass(case, name) is not None


@contextmanager
def _flash_restored() -> Iterator[None]:
    """Torch's own flash attention again, whichever implementation was tried in it."""
    try:
        yield
    finally:
        activate(TORCH)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """What happens in it leaves no trace in a run: neither in its random numbers nor in its peak of memory."""
    if device.type != "cuda":
        with torch.random.fork_rng([]):
            yield
        return
    with torch.cuda.device(device), torch.random.fork_rng([device]):
        yield
    torch.cuda.empty_cache()  # math writes all scores out
    torch.cuda.reset_peak_memory_stats(device)


def _pass(case: Case, name: str) -> Callable[[], None] | None:
    """A forward and a backward pass as the model makes them, from the packed projection to flat heads; None where the
    backend cannot."""
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
        warnings.simplefilter("ignore")  # torch says why each of its kernels cannot
        try:
            once()
        except Exception:  # unable, short of memory, without Triton: whatever it is, another will serve
            return None
    return once


def _timed(once: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        once()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # the GPU sleeps meanwhile, or what Python takes to ask for a short pass would be measured instead
    torch.cuda._sleep(_HEAD_START)
    begin.record()
    once()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
