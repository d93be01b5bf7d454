"""Weight decay groups: one rule for every optimizer, with and without DDP or compile."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ratrain.model.mechanism import own_modules


@dataclass(frozen=True)
class Group:
    """Named parameters with one weight decay; `matrices` marks the group of the blocks' matrices."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    matrices: bool = False


def group_parameters(model: nn.Module, weight_decay: float) -> list[Group]:
    """Groups the decayed matrices of the blocks, and all other parameters (tables, norms, biases, gates), not decayed.

    A tensor occurs once. A module, of the base or of a patch, names its decayed parameters in `decayed`.
    """
    decayed = {
        f"{name}.{key}"
        for name, module in own_modules(model)
        for key in getattr(module, "decayed", ())
        if name.startswith("blocks.")
    }
    named = dict(model.named_parameters())  # a shared tensor is listed once
    groups = []
    for matrices in (True, False):
        names = tuple(name for name in named if (name in decayed) == matrices)
        decay = weight_decay if matrices else 0.0
        groups.append(Group(names, tuple(named[name] for name in names), decay, matrices))
    return groups
