"""The tests of a configuration, as the old runner made them: optimizers x pruning x sparsities x variants x steps.

The two readings determine these lists differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adam", "adamw", "adamwadv", "adamwspam", "adamwprune")
METHODS = ("none", "magnitude", "movement", "state")
SPARSITIES = {"50": "0.5", "70": "0.7", "90": "0.9", "95": "0.95", "99": "0.99"}
VARIANTS = tuple(f"bitter{n}" for n in range(10))


@dataclass(frozen=True)
class Axes:
    """The lists to combine; `steps` is empty outside of an ablation."""

    optimizers: Sequence[str]
    methods: Sequence[str]
    sparsities: Sequence[str]
    variants: Sequence[str]
    steps: Sequence[str] = ()


@dataclass(frozen=True)
class Test:
    """One run that a configuration asks for."""

    optimizer: str
    pruning: str = "none"
    sparsity: str | None = None
    variant: str | None = None
    step: str | None = None

    @property
    def id(self) -> str:
        """The old runner's name of the test, without the model."""
        parts = [self.optimizer, *([self.variant] if self.variant else [])]
        if self.step is not None:
            parts.append(f"ramla_step{self.step}")
        elif self.sparsity is None:
            parts.append(self.pruning)
        else:
            parts += [self.pruning, _percent(self.sparsity)]
        return "_".join(parts)


def _percent(sparsity: str) -> str:
    try:
        return f"{float(sparsity) * 100:g}"
    except ValueError:  # reported as a fault when the option is read
        return sparsity


def tests_of(axes: Axes) -> Iterator[Test]:
    """Yields the tests in the old runner's order. AdamWPrune takes only state pruning or none; others never state."""
    for optimizer in axes.optimizers:
        is_prune = optimizer == "adamwprune"
        variants = list(axes.variants) if is_prune else [None]
        for method in axes.methods:
            if method != "none" and is_prune != (method == "state"):
                continue
            levels = [None] if method == "none" else list(axes.sparsities)
            steps = list(axes.steps) if method == "none" and axes.steps else [None]
            for level in levels:
                for step in steps:
                    for variant in variants:
                        yield Test(optimizer, method, level, variant, step)
