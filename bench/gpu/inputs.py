"""Inputs on which the kernels are checked and timed, and the processes that compile them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """Device and sizes of all measurements: GPT-2 124M's attention, its loss, and decoding with a long context."""

    device: str = "cuda"
    batch: int = 16
    n_head: int = 12
    n_token: int = 1024
    head_dim: int = 64
    block: int = 128  # of queries, for pruning
    n_class: int = 50304
    channels: int = 768
    decode_batch: int = 64
    decode_context: int = 8192
    dtype: torch.dtype = torch.bfloat16
    checked: tuple[int, int, int] = (2, 3, 200)  # batch, heads, tokens at which results are compared: odd on purpose
    repeats_ms: float = 100.0  # how long each figure is measured

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.n_head, self.n_token, self.head_dim

    def packed(self, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Returns q, k, v [B, H, T, D] that require gradients, as views of one random projection: zeros run faster."""
        batch, n_head, n_token, head_dim = shape or self.shape
        qkv = self.drawn(batch, n_token, 3, n_head, head_dim)
        return [x.requires_grad_() for x in qkv.to(dtype or self.dtype).permute(2, 0, 3, 1, 4).unbind(0)]

    def drawn(self, *shape: int, seed: int = 0) -> Tensor:
        """Draws standard normal numbers, fp32."""
        return self.normal(self.generator(seed), *shape)

    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=self.device)


REHEARSAL = Setting("cpu", 1, 1, 48, 32, 32, 128, 64, 2, 64, torch.float32, (1, 2, 33), 0.0)


def plan_of(n_token: int, block: int) -> dict[str, Any]:
    ends = range(block, n_token, block)
    return {"counts": [max(1, round(0.382 * end)) for end in ends], "recent": [4 for _ in ends], "block": block}


def learned_plan_of(q: Tensor, block: int) -> dict[str, Any]:
    """Returns `plan_of` for q [B, H, T, D], with counts [H, R - 1] that require gradients, around the same mean."""
    n_head, n_token = q.shape[1:3]
    ends = block * torch.arange(1, -(-n_token // block), device=q.device, dtype=torch.float32)
    share = torch.linspace(0.2, 0.56, n_head, device=q.device)[:, None]
    return {**plan_of(n_token, block), "counts": (share * ends).requires_grad_()}


def cache_of(setting: Setting, shape: Sequence[int], *, keep: float, both: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `decode_kept`: one query per head, and `keep` of the context; of its values only unless `both`."""
    batch, n_head, context, head_dim = shape
    generator, held = setting.generator(), max(1, round(keep * context))
    lengths = (1, held if both else context, held)
    q, keys, values = (setting.normal(generator, batch, n_head, n, head_dim).to(dtype) for n in lengths)
    mass = torch.zeros(batch, n_head, held, device=setting.device)
    given = {"q": q, "keys": keys, "values": values, "mass": mass}
    if both:
        return {**given, "places": None, "weight": None}
    order = torch.rand(batch, n_head, context, generator=generator, device=setting.device).argsort(-1)
    return {**given, "places": order[:, :, :held].sort(-1).values, "weight": torch.ones_like(mass)}


def head_of(setting: Setting, rows: int, channels: int, n_class: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Returns x [rows, C] and weight [V, C] that require gradients, and targets [rows]."""
    generator = setting.generator()
    x = setting.normal(generator, rows, channels).to(dtype)
    weight = (0.3 * setting.normal(generator, n_class, channels)).to(dtype)
    targets = torch.randint(n_class - 10, (rows,), generator=generator, device=setting.device)
    return x.requires_grad_(), weight.requires_grad_(), targets


def spread(work: Callable[[Any], Any], tasks: Sequence[Any], setting: Setting) -> Iterator[Any]:
    """Yields work(task) for each task, over the machine's cores; one after the other in a rehearsal."""
    if setting.device == "cpu":
        yield from map(work, tasks)
        return
    workers = min(12, os.cpu_count() or 1, len(tasks))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, tasks)
