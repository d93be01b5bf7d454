"""The attributes that the engine sets on every optimizer and reads from it, beyond torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ratrain.recipe.groups import Group


class Divided(Protocol):
    """A parameter of which each process has some rows. All processes must gather the same tensors in one order."""

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole parameter."""
        ...

    def whole(self, own: Tensor, dim: int = 0) -> Tensor:
        """Gathers a tensor whose dimension `dim` is divided like the parameter's rows."""
        ...

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Returns this process's part of a whole tensor."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of `tensor` over the processes that divide the parameter."""
        ...


class Contract:
    """Attributes of a built optimizer; a step reads none of them back from the device."""

    elementwise: ClassVar[bool] = True  # a weight stays exactly zero if it, its state and its gradient are zero
    tallies: ClassVar[tuple[str, ...]] = ()  # names in `own` of counts of events since the start of the run
    own: Mapping[str, Tensor] = MappingProxyType({})  # state that belongs to no single parameter; changed in place only
    grad_scale: Tensor | None = None  # 0-d, at least 1: `step` divides gradients by it
    found_inf: Tensor | None = None  # 0-d, 1.0: this step changes no parameter and no state
    # whether `step` reads the gradients of bf16 copies for parameters without a gradient and writes new values to the
    # copies; of the gradients, it then divides only those of vectors in place
    publishes: bool = False
    copies: Mapping[Tensor, Tensor] = MappingProxyType({})  # bf16 copies by parameter
    # by parameter: how it is divided among processes, each of which has its own rows of it
    divided: Mapping[Tensor, Divided] = MappingProxyType({})


def stated(groups: Sequence[Group], *, eps: float | None = None) -> list[dict[str, Any]]:
    """Converts `groups` to torch's param_groups, in order, without empty groups.

    A group with a factor gets a learning rate of its own, or its part of `eps`, the optimizer's.
    """
    found = []
    for g in (g for g in groups if g.parameters):
        options: dict[str, Any] = {"weight_decay": g.weight_decay, "matrices": g.matrices}
        if g.lr_factor != 1:
            options["lr"] = rate(groups)
        if g.eps_factor != 1:
            assert eps is not None, "the parametrisation is refused for optimizers without Adam's eps"
            options["eps"] = eps * g.eps_factor
        found.append({"params": list(g.parameters), **options})
    return found


def rate(groups: Sequence[Group]) -> Tensor:
    """Creates a learning rate of 0, 0-d on the parameters' device: a schedule fills it without a recompile."""
    return torch.zeros((), device=device_of(groups))


def device_of(groups: Sequence[Group]) -> torch.device:
    """Returns the device of the first parameter."""
    return next(p.device for g in groups for p in g.parameters)
