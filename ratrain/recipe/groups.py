"""Which parameter is decayed: one rule for every optimizer, with and without DDP or compile."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Group:
    """Named parameters that share a weight decay."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float


def group_parameters(model: nn.Module, weight_decay: float) -> list[Group]:
    """The matrices of the blocks, decayed; and all else (tables, norms, biases, gates), not. Each tensor once.

    A module names its decayed parameters in `decayed`; a patch's modules state theirs the same way.
    """
    decayed = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key in getattr(module, "decayed", ())
        if name.startswith("blocks.")
    }
    named = dict(model.named_parameters())  # a shared tensor is listed once
    groups = []
    for decay, names in (
        (weight_decay, [n for n in named if n in decayed]),
        (0.0, [n for n in named if n not in decayed]),
    ):
        groups.append(Group(tuple(names), tuple(named[n] for n in names), decay))
    return groups
