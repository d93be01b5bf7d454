"""The roofline: the least time that arithmetic and memory allow a row, and the binding one of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ratrain.profile.rows import GAPS, Row

COMPUTE, MEMORY, CACHE, MASKED = "compute", "memory", "cache", "masked"


@dataclass(frozen=True)
class Roof:
    """FLOP/s of matrix products and bytes/s of memory, read and written; `product` is the row that set the FLOP/s."""

    flops: float
    bandwidth: float
    product: str | None = None

    def lifted(self, rows: Sequence[Row]) -> Roof:
        """Raises the roof to the fastest product of the step, if another library or shape beats the measured FLOP/s."""
        known = [row for row in rows if row.flops and row.seconds > 0 and not row.is_attention]
        best = max(known, key=lambda row: (row.flops or 0) / row.seconds, default=None)
        if best is None or not best.flops or best.flops / best.seconds <= self.flops:
            return self
        return replace(self, flops=best.flops / best.seconds, product=best.name)


@dataclass(frozen=True)
class Priced:
    """A row, its least seconds under the roof (None: unknown), and its bound ("": unknown).

    If a row beats the roof, `bound` is the reason: "cache", its arrays did not come from memory; "masked", causal
    attention skipped counted FLOPs. Its distance to the roof is then 0.
    """

    row: Row
    allowed: float | None
    bound: str

    @property
    def percent(self) -> float | None:
        """The row's speed in percent of the roof; None if the roof is unknown."""
        return None if self.allowed is None or self.row.seconds <= 0 else 100 * self.allowed / self.row.seconds

    @property
    def gain(self) -> float:
        """Seconds above the roof's limit; for a gap all of its seconds."""
        if self.row.phase == GAPS:
            return max(0.0, self.row.seconds)
        return 0.0 if self.allowed is None else max(0.0, self.row.seconds - self.allowed)

    @property
    def best(self) -> float:
        """Seconds at the roof; the measured seconds if the roof is unknown."""
        return self.row.seconds - self.gain


def price(row: Row, roof: Roof) -> Priced:
    """Computes the limit and the bound of a row under the roof."""
    if not row.flops and not row.bytes:
        return Priced(row, None, "")
    arithmetic, memory = (row.flops or 0) / roof.flops, (row.bytes or 0) / roof.bandwidth
    allowed, bound = max(arithmetic, memory), COMPUTE if arithmetic >= memory else MEMORY
    if allowed > row.seconds:
        bound = CACHE if bound == MEMORY else MASKED if row.is_attention else bound
    return Priced(row, allowed, bound)


def furthest(priced: Sequence[Priced]) -> list[Priced]:
    """Returns the rows with a gain, the largest gain first."""
    return sorted((it for it in priced if it.gain > 0), key=lambda it: it.gain, reverse=True)
