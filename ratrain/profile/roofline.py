"""The roof: the least time that arithmetic and memory allow a row, and which of the two it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ratrain.profile.rows import GAPS, Row

COMPUTE, MEMORY, CACHE, MASKED = "compute", "memory", "cache", "masked"


@dataclass(frozen=True)
class Roof:
    """FLOP/s of matrix products and bytes/s of memory, read and written; `product`: the row that showed the former."""

    flops: float
    bandwidth: float
    product: str | None = None

    def lifted(self, rows: Sequence[Row]) -> Roof:
        """As high as the fastest product of the step itself, where another library or shape beats what was measured."""
        known = [row for row in rows if row.flops and row.seconds > 0 and not row.is_attention]
        best = max(known, key=lambda row: (row.flops or 0) / row.seconds, default=None)
        if best is None or not best.flops or best.flops / best.seconds <= self.flops:
            return self
        return replace(self, flops=best.flops / best.seconds, product=best.name)


@dataclass(frozen=True)
class Priced:
    """A row, the seconds that the roof allows it (None: not known), and what bounds it there ("": not known).

    Where a row beats the roof, `bound` says why: "cache", its arrays did not come from memory; "masked", causal
    attention left out what is counted. It then has no distance to the roof.
    """

    row: Row
    allowed: float | None
    bound: str

    @property
    def percent(self) -> float | None:
        """Of the roof."""
        return None if self.allowed is None or self.row.seconds <= 0 else 100 * self.allowed / self.row.seconds

    @property
    def gain(self) -> float:
        """Seconds above what the roof allows; a gap need not be at all."""
        if self.row.phase == GAPS:
            return max(0.0, self.row.seconds)
        return 0.0 if self.allowed is None else max(0.0, self.row.seconds - self.allowed)

    @property
    def best(self) -> float:
        """Seconds at the roof; as measured where that is not known."""
        return self.row.seconds - self.gain


def price(row: Row, roof: Roof) -> Priced:
    """A row under the roof."""
    if not row.flops and not row.bytes:
        return Priced(row, None, "")
    arithmetic, memory = (row.flops or 0) / roof.flops, (row.bytes or 0) / roof.bandwidth
    allowed, bound = max(arithmetic, memory), COMPUTE if arithmetic >= memory else MEMORY
    if allowed > row.seconds:
        bound = CACHE if bound == MEMORY else MASKED if row.is_attention else bound
    return Priced(row, allowed, bound)


def furthest(priced: Sequence[Priced]) -> list[Priced]:
    """The rows by what could be gained, the largest first."""
    return sorted((it for it in priced if it.gain > 0), key=lambda it: it.gain, reverse=True)
