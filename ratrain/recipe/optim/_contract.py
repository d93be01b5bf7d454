"""What the engine sets on every optimizer and reads from it, beside what torch.optim.Optimizer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ratrain.recipe.groups import Group


class Contract:
    """Attributes of a built optimizer; nothing of them is read back from the device during a step."""

    elementwise: ClassVar[bool] = True  # a weight, its state and its gradient that are zero stay exactly zero
    tallies: ClassVar[tuple[str, ...]] = ()  # those of `own` that count events since the start of the run
    own: Mapping[str, Tensor] = MappingProxyType({})  # state of no single parameter, changed in place only
    grad_scale: Tensor | None = None  # 0-d, at least 1: gradients are to be divided by it
    found_inf: Tensor | None = None  # 0-d, 1.0: this step changes no parameter and no state
    # whether `step` takes the gradients of bf16 copies where a parameter has none of its own, and writes the new values
    # to the copies; of gradients it leaves those of vectors alone divided then
    publishes: bool = False
    copies: Mapping[Tensor, Tensor] = MappingProxyType({})  # bf16 copy of a parameter, where there is one


def stated(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What torch takes as param_groups: `groups` in order, those without parameters left out."""
    return [
        {"params": list(g.parameters), "weight_decay": g.weight_decay, "matrices": g.matrices}
        for g in groups
        if g.parameters
    ]


def rate(groups: Sequence[Group]) -> Tensor:
    """A learning rate of 0, 0-d and on the device of the parameters: a schedule that fills it costs no recompile."""
    return torch.zeros((), device=device_of(groups))


def device_of(groups: Sequence[Group]) -> torch.device:
    """Where the parameters are."""
    return next(p.device for g in groups for p in g.parameters)
