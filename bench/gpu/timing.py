"""Times the kernels against torch's own attention and loss."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.inputs import Setting, cache_of, head_of, learned_plan_of, plan_of
from bench.gpu.ledger import fault
from ratrain.kernels import kv_prune, ra_attention
from ratrain.kernels.linear_cross_entropy import linear_cross_entropy

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


_HEAD_START = 5_000_000  # cycles that a GPU sleeps, about 3 ms, while a call is queued
_CACHE = 256 << 20  # bytes written between calls: no input is left in the L2 cache


def milliseconds(run: Callable[[], object], setting: Setting) -> float:
    """Returns the median time of a call; on a GPU by CUDA events, with other data in the L2 cache.

    The GPU sleeps while the call is queued: else the launch overhead of Python, 0.3 to 0.5 ms for one of these
    operations, would be measured instead.
    """
    run()
    if setting.device == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    other = torch.empty(_CACHE, dtype=torch.int8, device=setting.device)
    times, spent = [], 0.0
    while len(times) < 5 or (spent < setting.repeats_ms and len(times) < 200):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        torch.cuda._sleep(_HEAD_START)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
        spent += times[-1]
    return statistics.median(times)


def replayed(run: Callable[[], object], setting: Setting) -> Callable[[], object]:
    """Captures the call as a CUDA graph, which has no Python overhead; returns `run` on a CPU or if capture fails."""
    if setting.device == "cpu":
        return run
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # compiles and allocates before the capture
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return run
    return graph.replay


def both_ways(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Returns a callable that runs the call and its gradients for `inputs`; it fails only when it is called."""
    slope = functools.cache(lambda: torch.randn_like(run()))
    return lambda: torch.autograd.grad(run(), inputs, slope())


@dataclass
class Peaks:
    """Measured peaks of this machine: FLOP/s of a large product, bytes/s of a large copy."""

    flops: float
    bytes: float


def peaks(setting: Setting) -> Peaks:
    size = 8192 if setting.device != "cpu" else 128
    a, b = (torch.randn(size, size, device=setting.device).to(setting.dtype) for _ in range(2))
    product = milliseconds(lambda: a @ b, setting)
    source = torch.randn(1 << 28 if setting.device != "cpu" else 1 << 12, device=setting.device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), setting)
    return Peaks(2e3 * size**3 / product, 2e3 * source.nbytes / copy)


@dataclass(frozen=True)
class Timed:
    """A timed call, with its least FLOPs and bytes; `beside` is the name prefix of the calls it is compared with."""

    name: str
    run: Callable[[], object]
    flops: float = 0.0
    bytes: float = 0.0
    beside: str = ""
    target: float | None = None  # of the ratio of times to the fastest of these
    fields: dict[str, Any] = field(default_factory=dict)


def time_all(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yields a row for each kernel and for each competitor."""
    yield from time_groups(setting, attention, loss, decoding)


def time_groups(setting: Setting, *groups: Callable[[Setting], Iterator[Timed]]) -> Iterator[dict[str, Any]]:
    """Yields a row for each member of the groups, with its share of the peaks measured before."""
    peak = peaks(setting)
    for group in groups:
        yield from _time_group(group, setting, peak)


def _time_group(group: Callable[[Setting], Iterator[Timed]], setting: Setting, peak: Peaks) -> Iterator[dict[str, Any]]:
    ms: dict[str, float] = {}
    for one in group(setting):
        row: dict[str, Any] = {"kernel": one.name, **one.fields}
        try:
            call = replayed(one.run, setting)
            row["graph"] = call is not one.run
            ms[one.name] = milliseconds(call, setting)
            del call
        except Exception as error:
            yield {**row, "why": fault(error)}
            continue
        seconds = ms[one.name] / 1e3
        row |= {"ms": round(ms[one.name], 4), "tflops": round(one.flops / seconds / 1e12, 1)}
        row |= {"of_peak": round(one.flops / seconds / peak.flops, 3)}
        row |= {"of_bandwidth": round(one.bytes / seconds / peak.bytes, 3)}
        rivals = [time for name, time in ms.items() if one.beside and name.startswith(one.beside)]
        if rivals:
            row |= {"ratio": round(ms[one.name] / min(rivals), 3), "beside": one.beside}
        if rivals and one.target is not None:
            row |= {"target": one.target, "met": row["ratio"] <= one.target}
        yield row


def attention(setting: Setting) -> Iterator[Timed]:
    q, k, v = inputs = setting.packed()
    batch, n_head, n_token, head_dim = setting.shape
    forward = 2.0 * batch * n_head * n_token**2 * head_dim  # two products, half of each masked
    size = q.numel() * q.element_size()
    gate = torch.full((n_head, head_dim), 1.1, device=setting.device, requires_grad=True)
    w_r = torch.full((n_head,), 0.3, device=setting.device, requires_grad=True)
    plan = plan_of(n_token, setting.block)

    def pruned(both: bool) -> Tensor:
        return kv_prune.pruned_attention(q, k, v, kv_prune.keep(q, k, **plan, both=both), block=plan["block"])

    by_head = learned_plan_of(q, setting.block)

    def learned() -> Tensor:
        kept, counts = kv_prune.keep(q, k, **by_head, ranked=True), by_head["counts"]
        return kv_prune.pruned_attention(q, k, v, kept, block=setting.block, counts=counts, softness=0.05)

    def plain(backend: SDPBackend | None) -> Tensor:
        with nullcontext() if backend is None else sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    ours = {
        "folded": (lambda: ra_attention.ra_attention(q, k, v, gate), [*inputs, gate], 1.0, 1.0),
        "tied": (lambda: ra_attention.ra_attention(q, k, v, gate, w_r=w_r), [*inputs, gate, w_r], 1.5, 1.5),
        "pruned kv": (lambda: pruned(True), inputs, 1.0, None),
        "pruned v_only": (lambda: pruned(False), inputs, 1.0, None),
        "pruned learned": (learned, [*inputs, by_head["counts"]], 1.0, None),
    }
    rivals = BACKENDS if setting.device != "cpu" else {"cpu": None}
    for way, flops, moved in (("forward", forward, 4 * size), ("forward + backward", 3.5 * forward, 12 * size)):
        for name, backend in rivals.items():
            run = partial(plain, backend)
            yield Timed(f"sdpa {way} {name}", run if way == "forward" else both_ways(run, inputs), flops, moved)
        for name, (run, wanting, work, target) in ours.items():
            call = run if way == "forward" else both_ways(run, wanting)
            yield Timed(f"{name} {way}", call, work * flops, moved, f"sdpa {way} ", target)


def loss(setting: Setting) -> Iterator[Timed]:
    rows = setting.batch * setting.n_token
    x, weight, targets = head_of(setting, rows, setting.channels, setting.n_class, setting.dtype)
    calls: dict[str, Callable[[], Tensor]] = {
        "loss unfused": lambda: F.cross_entropy((x @ weight.T).float(), targets),
        "loss linear_cross_entropy": lambda: linear_cross_entropy(x, weight, targets),
    }
    flops = 6.0 * rows * setting.channels * setting.n_class
    for name, run in calls.items():
        call = both_ways(run, (x, weight))
        memory = _memory(call, setting)
        target = 1.0 if name.endswith("entropy") else None
        yield Timed(name, call, flops, 0.0, "loss unfused", target, {"peak_MiB": memory})


def _memory(call: Callable[[], object], setting: Setting) -> int | None:
    """Returns the peak memory of the call in MiB above the memory allocated before it; None on a CPU."""
    if setting.device == "cpu":
        call()
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) >> 20


def decoding(setting: Setting) -> Iterator[Timed]:
    shape = setting.decode_batch, setting.n_head, setting.decode_context, setting.head_dim
    dense = cache_of(setting, shape, keep=1.0, both=True, dtype=setting.dtype)
    q, keys, values = dense["q"], dense["keys"], dense["values"]
    yield Timed(
        "decode dense sdpa", lambda: F.scaled_dot_product_attention(q, keys, values), bytes=keys.nbytes + values.nbytes
    )
    for name, keep, both, target in (
        ("decode dense ours", 1.0, True, None), ("decode kv 0.382", 0.382, True, 0.5),
        ("decode v_only 0.382", 0.382, False, None),
    ):  # fmt: skip
        given = cache_of(setting, shape, keep=keep, both=both, dtype=setting.dtype)
        held = given["keys"].nbytes + given["values"].nbytes
        run = partial(kv_prune.decode_kept, **given, renormalise=not both)
        yield Timed(name, run, bytes=held, beside="decode dense", target=target)
