"""SinkGD as the reference ran it, to reproduce its runs: nearly plain gradient descent (defect D20)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from ratrain.config.schema import OptimSection
from ratrain.recipe.groups import Group
from ratrain.recipe.optim._matrices import Stacks
from ratrain.registry import register


@register("sinkgd_legacy")
class SinkGDLegacy(OptimSection):
    """A gradient squashed by rows and columns, then brought back to its own root mean square; for every parameter.

    Steps are as small as the gradient: at the learning rates of Adam the weights practically do not move.
    """

    held: ClassVar[int] = 0

    tau: PositiveFloat = Field(default=0.1, description="temperature of the tanh; smaller is nearer to a sign")
    iterations: NonNegativeInt = Field(
        default=5, description="times it is squashed; 0: only divided by the mean of |g|"
    )
    eps: PositiveFloat = Field(default=1e-8, description="least sum of a row or column, and part of both root means")

    @property
    def divisible(self) -> bool:
        return False  # it squashes every parameter by its rows and columns, also those that FSDP leaves whole

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return LegacySinking(groups, self)


class LegacySinking(Stacks):
    """Steps against squashed gradients."""

    def __init__(self, groups: Sequence[Group], section: SinkGDLegacy):
        super().__init__(groups, {})
        self._section = section

    def direction(self, parameters: list[Tensor], gradients: Tensor, skipped: Tensor | None) -> Tensor:
        """Returns squashed `gradients` [K, ...]."""
        section = self._section
        return squash(gradients, tau=section.tau, iterations=section.iterations, eps=section.eps)


def squash(g: Tensor, *, tau: float, iterations: int, eps: float) -> Tensor:
    """Applies the reference's transform to each of the stacked gradients [K, ...]."""
    flat = g.reshape(len(g), -1)
    if iterations == 0:
        return (flat / (flat.abs().mean(-1, keepdim=True) + eps)).view_as(g)
    sharp = max(eps, tau)
    if g.dim() < 3:  # a vector, which is not rescaled to its own root mean square
        return (flat / flat.abs().sum(-1, keepdim=True).clamp(min=eps) / sharp).tanh().view_as(g)
    x = g
    for _ in range(iterations):
        for dim in (-1, -2):
            x = x / x.abs().sum(dim, keepdim=True).clamp(min=eps)
        x = (x / sharp).tanh()
    own, now = (t.reshape(len(g), -1).square().mean(-1).sqrt() + eps for t in (g, x))
    return x * (own / now).view(-1, *[1] * (g.dim() - 1))
