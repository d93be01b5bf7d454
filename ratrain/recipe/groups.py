"""Groups of parameters by weight decay, learning rate and eps: one rule for every optimizer, with and without DDP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ratrain.model.mechanism import own_modules
from ratrain.model.parametrisation import Factors

_PLAIN = Factors()


@dataclass(frozen=True)
class Group:
    """Named parameters with one weight decay, and factors on the learning rate and on the eps of the optimizer.

    `matrices` marks the groups of the blocks' matrices.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    matrices: bool = False
    lr_factor: float = 1.0
    eps_factor: float = 1.0


def group_parameters(model: nn.Module, weight_decay: float) -> list[Group]:
    """Groups the decayed matrices of the blocks, and all other parameters (tables, norms, biases, gates), not decayed.

    A tensor occurs once. A module, of the base or of a patch, names its decayed parameters in `decayed`. Under another
    parametrisation than the standard one (`model.factors`) each of the two has a group for every set of factors.
    """
    decayed = {
        f"{name}.{key}"
        for name, module in own_modules(model)
        for key in getattr(module, "decayed", ())
        if name.startswith("blocks.")
    }
    named = dict(model.named_parameters())  # a shared tensor is listed once
    factors: dict[str, Factors] = getattr(model, "factors", {})
    groups = []
    for matrices in (True, False):
        decay = weight_decay if matrices else 0.0
        kinds: dict[tuple[float, float, float], list[str]] = {} if factors else {(decay, 1.0, 1.0): []}
        for name in (name for name in named if (name in decayed) == matrices):
            own = factors.get(name, _PLAIN)
            kinds.setdefault((decay * own.decay, own.lr, own.eps), []).append(name)
        groups += [
            Group(tuple(names), tuple(named[name] for name in names), decay, matrices, lr, eps)
            for (decay, lr, eps), names in kinds.items()
        ]
    return groups
