"""Pruning schedule: sparsity over a run, and its distribution over the matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ratrain.config.schema import PruneSection, Span

_FIRST, _LAST = 0.7, 1.3  # shares of the first and the last matrix, before they are scaled to the whole (bitter4)
_CAP = 0.95  # highest sparsity of a matrix, unless the overall sparsity is higher


class PruneSchedule:
    """Sparsity after a step; steps count from 1, `spent` is the used fraction of the budget."""

    def __init__(self, section: PruneSection, *, total_steps: int | None):
        self.section = section
        self._unit = 1 if total_steps is None else total_steps  # total steps, or 1 for a budget of unknown steps
        self._by_steps = total_steps is not None
        self._start, self._end = (self._place(span) for span in (section.start, section.end))

    def _place(self, span: Span) -> float:
        return span.steps if span.steps is not None else (span.fraction or 0.0) * self._unit

    def progress(self, step: int, spent: float) -> float:
        """Returns the progress from `start` to `end`, in [0, 1]."""
        now = step if self._by_steps else spent
        return min(1.0, max(0.0, (now - self._start) / (self._end - self._start)))

    def sparsity(self, step: int, spent: float) -> float:
        """Returns the scheduled sparsity after that step, whether or not masks are recomputed then."""
        p = self.progress(step, spent)
        shape = {"linear": p, "cubic_late": p**3, "cubic_early": 1 - (1 - p) ** 3}[self.section.schedule]
        return self.section.target * shape

    def due(self, step: int, spent: float, reached: bool) -> bool:
        """Whether masks are recomputed after that step: every `every` steps between `start` and `end`, and at `end`."""
        p = self.progress(step, spent)
        return not reached and (p >= 1 or (p > 0 and step % self.section.every == 0))


def shares(kind: str, sizes: Sequence[int], sparsity: float) -> list[float]:
    """Returns the pruned fraction of each matrix, in order of depth, such that sum n_l s_l = sparsity x sum n_l."""
    if kind == "uniform" or len(sizes) == 1:
        return [sparsity] * len(sizes)
    slope = (_LAST - _FIRST) / (len(sizes) - 1)
    wanted, cap = [_FIRST + slope * place for place in range(len(sizes))], max(_CAP, sparsity)
    whole, capped = sparsity * sum(sizes), set[int]()
    while True:  # the excess above the cap moves to the other matrices
        rest = whole - cap * sum(sizes[i] for i in capped)
        weight = sum(n * w for i, (n, w) in enumerate(zip(sizes, wanted, strict=True)) if i not in capped)
        scale = rest / weight if weight else 0.0
        over = {i for i, w in enumerate(wanted) if i not in capped and scale * w > cap}
        if not over:
            return [cap if i in capped else scale * w for i, w in enumerate(wanted)]
        capped |= over


def apportion(before: Sequence[int], wanted: Sequence[float], whole: int) -> list[int]:
    """Rounds `wanted` to integers that sum to `whole` >= sum(before), none below `before`, each close to `wanted`."""
    counts = list(before)
    lacks = [w - b for w, b in zip(wanted, before, strict=True)]
    grown = [max(0, math.floor(lack)) for lack in lacks]
    by_need = sorted(range(len(counts)), key=lambda i: (grown[i] - lacks[i], i))  # largest shortfall first
    more = whole - sum(before) - sum(grown)
    while more:
        for i in by_need if more > 0 else reversed(by_need):
            step = 1 if more > 0 else -1
            if more and grown[i] + step >= 0:
                grown[i] += step
                more -= step
    return [b + g for b, g in zip(counts, grown, strict=True)]
