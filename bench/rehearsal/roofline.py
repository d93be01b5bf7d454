"""Models the time of a rehearsed step: each kernel at its card's speed, and a gap for each launch.

A model, not a measurement. Its assumptions, all of them public figures of Hopper cards: products reach `PRODUCTS` of
the card's measured peak, or the speed of memory if they are narrow; attention reaches Card.attention; all else moves
its bytes at Card.bandwidth; a launch leaves the GPU idle for `GAP` seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bench.rehearsal.card import Card
from bench.rehearsal.record import HEAD, OPTIMIZER, TRITON, Work

PRODUCTS = 0.70  # of the peak that one large product reaches
TUNED = 0.78  # the same with max-autotune's choice of tiles
_HEAD = 1.03  # over PRODUCTS: the head's products are the widest
GAP = 1.3e-6
SELECTION = 90e-6  # of the kernel that decides which keys stay: block by block, a few programs a head
_TILE = 128  # rows of a product's tile, which is twice as wide
PARTS: tuple[str, ...] = ("products", "attention", "pointwise", "head", "optimizer", "gaps")


@dataclass(frozen=True)
class Model:
    """Seconds of one step by part, and its tokens."""

    seconds: dict[str, float]
    tokens: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.total


def model(work: Iterable[Work], tokens: int, card: Card, *, products: float = PRODUCTS) -> Model:
    """Of one step of one micro-batch of `tokens`."""
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for one in work:
        seconds[_part(one)] += _seconds(one, card, products)
        seconds["gaps"] += one.count * GAP
    return Model(seconds, tokens)


def _part(one: Work) -> str:
    if one.phase in (HEAD, OPTIMIZER):
        return one.phase
    if one.name.startswith("kv_prune ") or "attention" in one.name:
        return "attention"
    return "products" if one.flops else "pointwise"


def _seconds(one: Work, card: Card, products: float) -> float:
    memory = one.bytes / card.bandwidth
    if one.kind == TRITON:  # ratrain's; some have no FLOPs
        return max(memory, one.flops / card.kernels) + (SELECTION * one.count if "_select_kernel" in one.name else 0.0)
    if "attention" in one.name:  # FLOPs count the whole square, of which a causal kernel computes half
        return max(memory, one.flops / 2 / card.attention["backward" in one.name])
    share = products * _HEAD / _idle(one, card) if one.phase == HEAD else products
    peak = 2 * card.flops if "_scaled_mm" in one.name else card.flops  # of 8-bit factors
    return max(memory, one.flops / (share * peak))


def _idle(one: Work, card: Card) -> float:
    """Time of a chunk of the head over a product of full tiles: its last tiles are ragged, and if a product has fewer
    tiles than the card has processors, splitting its sum over them costs about half of its gain."""
    shapes = [tuple(map(int, word.rstrip("f").split("x"))) for word in one.name.split()[1:]]
    if len(shapes) < 2:
        return 1.0
    rows, columns = shapes[0][0], shapes[-1][-1]
    ragged = math.ceil(rows / _TILE) * _TILE / rows
    few = math.ceil(rows / _TILE) * math.ceil(columns / (2 * _TILE)) < card.processors
    return 1.5 * ragged if few else ragged
