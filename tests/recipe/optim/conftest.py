"""A few parameters under an optimizer, stepped with gradients that the test chooses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ratrain.recipe.groups import Group
from ratrain.registry import optim_kinds

MATRICES, REST = ((6, 4), (4, 6), (6, 4)), ((7, 3), (5,), (2, 2, 2))
LR = 2.0**-6  # exact in fp32, in which the tensor holds it


def drawn(seed: int, dtype: torch.dtype) -> list[Tensor]:
    """One random tensor per parameter."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in (*MATRICES, *REST)]


@dataclass
class Trial:
    """Three matrices of a block, decayed, and a table, a vector and a stack that are not."""

    parameters: list[nn.Parameter]
    optimizer: Any

    def gradients(self, seed: int) -> list[Tensor]:
        """Fresh ones."""
        return drawn(1000 + seed, self.parameters[0].dtype)

    def step(self, gradients, *, lr=LR, scale=None, skip=None) -> None:
        """One step; `scale` and `skip` are what the engine's clipping sets, None where it sets nothing."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        self.optimizer.grad_scale = None if scale is None else torch.tensor(scale, dtype=torch.float32)
        self.optimizer.found_inf = None if skip is None else torch.tensor(skip, dtype=torch.float32)
        self.optimizer.step()

    def steps(self, seeds, **options) -> None:
        """One step for each seed."""
        for seed in seeds:
            self.step(self.gradients(seed), **options)

    def state(self, key: str) -> list[Tensor]:
        """Of the parameters that have it, in order."""
        return [self.optimizer.state[p][key] for p in self.parameters if key in self.optimizer.state[p]]

    def bits(self) -> dict[str, Tensor]:
        """The bytes of every parameter and of all state."""
        held = {f"parameter {i}": p for i, p in enumerate(self.parameters)}
        for i, entry in self.optimizer.state_dict()["state"].items():
            held |= {f"{key} {i}": tensor for key, tensor in entry.items()}
        held |= {f"own {name}": tensor for name, tensor in self.optimizer.own.items()}
        return {name: t.detach().clone().reshape(-1).view(torch.uint8) for name, t in held.items()}

    def again(self, kind: str, **options) -> Trial:
        """Built anew and given what a checkpoint keeps of this one."""
        other = begin(kind, dtype=self.parameters[0].dtype, **options)
        with torch.no_grad():
            for mine, saved in zip(other.parameters, self.parameters, strict=True):
                mine.copy_(saved)
        other.optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        for name, tensor in other.optimizer.own.items():
            tensor.copy_(self.optimizer.own[name])
        return other


def begin(kind: str, *, dtype: torch.dtype = torch.float64, **options) -> Trial:
    parameters = [nn.Parameter(tensor) for tensor in drawn(0, dtype)]
    kinds: Any = optim_kinds()
    section = kinds[kind](**options)
    names = tuple(f"p{i}" for i in range(len(parameters)))
    n = len(MATRICES)
    groups = [
        Group(names[:n], tuple(parameters[:n]), section.weight_decay, matrices=True),
        Group(names[n:], tuple(parameters[n:]), 0.0),
    ]
    return Trial(parameters, section.build(groups))


@pytest.fixture(scope="session")
def trial():
    """Begins one: trial(kind, dtype=..., **options)."""
    return begin
