"""Races the kernels over tile sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.inputs import Setting, cache_of, learned_plan_of, plan_of, spread
from bench.gpu.ledger import fault
from bench.gpu.timing import both_ways, milliseconds
from ratrain.kernels import kv_prune, ra_attention
from ratrain.kernels.tuning import Tile, architecture, config, neighbours, size_of, trial

Key = tuple[str, str, str]


def raced(setting: Setting) -> dict[Key, Callable[[Setting], Callable[[], object]]]:
    """The raced tiles, at the measured head dimension, each with the call in which its kernel is timed."""
    size = size_of(setting.head_dim, setting.dtype)
    calls: dict[Key, Callable[[Setting], Callable[[], object]]] = {}
    for phase in ("forward", "keys", "tokens"):
        for tied in (False, True):
            key = ("ra_attention", f"tied_{phase}" if tied else phase, size)
            calls[key] = partial(_ra_call, tied=tied, backward=phase != "forward")
    for phase in ("sum", "mass", "attend", "queries", "keys"):
        calls["kv_prune", phase, size] = partial(_kv_call, backward=phase in ("queries", "keys"))
    calls["kv_prune", "learned_queries", size] = calls["kv_prune", "place", "any"] = _learned_call
    for phase in ("scores", "mix"):
        calls["kv_prune", phase, size] = _decode_call
    return calls


def _ra_call(setting: Setting, *, tied: bool, backward: bool) -> Callable[[], object]:
    inputs = setting.packed()
    gate = torch.ones(setting.n_head, setting.head_dim, device=setting.device)
    w_r = torch.ones(setting.n_head, device=setting.device) if tied else None
    run = partial(ra_attention.ra_attention, *inputs, gate, w_r=w_r)
    return both_ways(run, inputs) if backward else run


def _kv_call(setting: Setting, *, backward: bool) -> Callable[[], object]:
    q, k, v = inputs = setting.packed()
    plan = plan_of(setting.n_token, setting.block)

    def run() -> Tensor:
        return kv_prune.pruned_attention(q, k, v, kv_prune.keep(q, k, **plan), block=plan["block"])

    return both_ways(run, inputs) if backward else run


def _learned_call(setting: Setting) -> Callable[[], object]:
    q, k, v = inputs = setting.packed()
    plan = learned_plan_of(q, setting.block)

    def run() -> Tensor:
        kept = kv_prune.keep(q, k, **plan, ranked=True)
        return kv_prune.pruned_attention(q, k, v, kept, block=setting.block, counts=plan["counts"], softness=0.05)

    return both_ways(run, [*inputs, plan["counts"]])


def _decode_call(setting: Setting) -> Callable[[], object]:
    shape = setting.decode_batch, setting.n_head, setting.decode_context, setting.head_dim
    return partial(kv_prune.decode_kept, **cache_of(setting, shape, keep=0.382, both=True, dtype=setting.dtype))


def prepare(task: tuple[Key, Tile, Setting]) -> str:
    """Compiles a kernel with a tile, into the cache shared by all processes; returns its fault, or "" if none."""
    key, tile, setting = task
    if setting.device != "cpu":
        from ratrain.kernels.ahead import TARGETS, all_cases, compile_one

        arch = architecture()
        same = [case for case in all_cases() if case.key == key]
        if arch in TARGETS and (found := next((f for c in same if (f := compile_one(arch, c, tile).fault)), "")):
            return found
    try:
        with trial(key, tile):
            raced(setting)[key](setting)()
    except Exception as error:
        return fault(error)
    return ""


def race(setting: Setting, *, lanes: int) -> Iterator[dict[str, Any]]:
    """Races each kernel's tile against its `lanes` nearest: yields a row per kernel, with the fastest tile."""
    calls = raced(setting)
    field_of = {key: [config(*key), *itertools.islice(neighbours(config(*key)), lanes)] for key in calls}
    tasks = [(key, tile, setting) for key, tiles in field_of.items() for tile in tiles]
    faults = dict(zip(((key, tile) for key, tile, _ in tasks), spread(prepare, tasks, setting), strict=True))
    for key, tiles in field_of.items():
        run, ms = calls[key](setting), {}
        for tile in (tile for tile in tiles if not faults[key, tile]):
            with trial(key, tile):
                ms[tile] = milliseconds(run, setting)
        if not ms:
            yield {"kernel": " ".join(key), "why": faults[key, tiles[0]]}
            continue
        best = min(ms, key=lambda tile: ms[tile])
        yield {
            "kernel": " ".join(key), "tile": list(vars(best).values()), "ms": round(ms[best], 4),
            "before": round(ms[tiles[0]], 4) if tiles[0] in ms else None, "ran": len(ms),
            "refused": len(tiles) - len(ms),
        }  # fmt: skip
