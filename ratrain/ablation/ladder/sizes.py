"""Shapes of the baseline by its number of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_NEAR = 0.1  # of the parameters' logarithm: shapes this close are alike, and the aspect decides
_DEEPEST = 200


@dataclass(frozen=True)
class Shape:
    """A decoder of `n_layer` layers with `n_embd` channels in `n_head` heads."""

    n_layer: int
    n_embd: int
    n_head: int


@dataclass(frozen=True)
class Sizes:
    """The parameters of a decoder with C channels and L layers: the polynomial a0 + a1 C + L (b1 C + b2 C^2)."""

    outer: tuple[float, float]  # a0, a1
    block: tuple[float, float]  # b1, b2

    @classmethod
    def of(cls, parameters: Callable[[int, int], int], width: int) -> Sizes:
        """Fits the polynomial to `parameters` of layers and channels, counted at one and two times `width`."""
        at = [(1, width), (2, width), (1, 2 * width), (2, 2 * width)]
        rows = [(1, c, layers * c, layers * c**2) for layers, c in at]
        found = np.linalg.solve(np.array(rows, float), np.array([parameters(*shape) for shape in at], float))
        return cls((float(found[0]), float(found[1])), (float(found[2]), float(found[3])))

    def parameters(self, n_layer: int, n_embd: int) -> float:
        (a0, a1), (b1, b2) = self.outer, self.block
        return a0 + a1 * n_embd + n_layer * (b1 * n_embd + b2 * n_embd**2)

    def width(self, parameters: float, n_layer: int) -> float:
        """Returns the channels, not rounded, that give so many parameters; 0 if the least model has more."""
        (a0, a1), (b1, b2) = self.outer, self.block
        linear, quadratic = a1 + n_layer * b1, n_layer * b2
        root = linear**2 - 4 * quadratic * (a0 - parameters)
        return max(0.0, (math.sqrt(root) - linear) / (2 * quadratic)) if root > 0 else 0.0

    def shape(self, parameters: float, *, head_dim: int, aspect: float, n_layer: int | None = None) -> Shape:
        """Returns a shape of about so many parameters, in whole heads of `head_dim` channels.

        With `n_layer` it is the nearest. Otherwise it is, of the shapes within a tenth of the parameters, that whose
        n_embd / n_layer is nearest to `aspect`; the nearest of all if there is none.
        """
        depths = [n_layer] if n_layer else range(1, _DEEPEST + 1)
        heads = {depth: max(1, round(self.width(parameters, depth) / head_dim)) for depth in depths}
        shapes = [Shape(depth, count * head_dim, count) for depth, count in heads.items()]

        def unlike(shape: Shape) -> tuple[float, float]:
            away = abs(math.log(self.parameters(shape.n_layer, shape.n_embd) / parameters))
            return max(0.0, away - _NEAR), abs(math.log(shape.n_embd / shape.n_layer / aspect))

        return min(shapes, key=unlike)
