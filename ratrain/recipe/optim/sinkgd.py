"""SinkGD (Scetbon et al. 2025, arXiv:2502.06742): gradients of matrices with rows and columns of one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ratrain.recipe.groups import Group
from ratrain.recipe.optim._matrices import Matrices, MatrixSection
from ratrain.registry import register

_LEAST = 1e-12  # lower bound of a row or column norm, with the largest entry scaled to 1


@register("sinkgd")
class SinkGD(MatrixSection):
    """No state for the matrices of the blocks, no momentum; AdamW for all else.

    The entries of a step have a root mean square of lr; those of AdamW have about 0.2 to 0.4 lr.
    """

    iterations: PositiveInt = Field(
        default=5, description="times that rows, then columns, are normalised to one length"
    )

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return Sinking(groups, self)


class Sinking(Matrices):
    """Steps against balanced gradients."""

    def __init__(self, groups: Sequence[Group], section: SinkGD):
        super().__init__(groups, section)
        self._iterations = section.iterations

    def direction(self, parameters: list[Tensor], gradients: Tensor, skipped: Tensor | None) -> Tensor:
        """Returns balanced `gradients` [K, m, n]."""
        return self.on_whole(parameters, lambda x: balance(x, self._iterations), gradients)


def balance(x: Tensor, iterations: int) -> Tensor:
    """Balances matrices [K, m, n] in place: X <- sqrt(n) X / |row|_2, X <- sqrt(m) X / |column|_2, `iterations` times.

    A row or column of zeros stays zero.
    """
    m, n = x.shape[-2:]
    # only proportions matter; the squares of small gradients would vanish in fp32
    x.div_(x.abs().amax((-2, -1), keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny))
    for _ in range(iterations):
        for dim, length in ((-1, n), (-2, m)):
            norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
            x.mul_(length**0.5 / norm.clamp_(min=_LEAST))
    return x
