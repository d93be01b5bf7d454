"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalised momentum of matrices.

Not torch.optim.Muon, which synchronises with the device to read its learning rate, ignores found_inf and grad_scale,
processes the matrices one by one, and always computes in bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ratrain.recipe.groups import Group
from ratrain.recipe.optim._matrices import Matrices, MatrixSection
from ratrain.registry import register

_A, _B, _C = 3.4445, -4.7750, 2.0315  # maximal slope at 0 with singular values ending near 1: about 0.7 to 1.2
_EPS = 1e-7  # lower bound of the norm that divides a matrix


@register("muon")
class Muon(MatrixSection):
    """For the matrices of the blocks; AdamW for all else.

    q, k and v, which share one matrix, are made orthogonal together.
    """

    momentum: float = Field(default=0.95, ge=0, lt=1, description="decay per step of the mean of gradients")
    nesterov: bool = Field(default=True, description="look ahead along the momentum")
    iterations: PositiveInt = Field(default=5, description="Newton-Schulz iterations")
    newton_schulz: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="number format of the iterations; auto: bf16 on a GPU, the type of the weights elsewhere",
    )
    adjust: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw",
        description="a step of an m x n matrix times 0.2 sqrt(max(m, n)), about the size of AdamW's (Liu et al., "
        "arXiv:2502.16982), or times sqrt(max(1, m / n)), which needs a learning rate, and rest_lr, of its own",
    )

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return Orthogonal(groups, self)


class Orthogonal(Matrices):
    """Steps against the orthogonalised momentum; state: momentum_buffer."""

    elementwise = False

    def __init__(self, groups: Sequence[Group], section: Muon):
        super().__init__(groups, section)
        self._section = section

    def direction(self, parameters: list[Tensor], gradients: Tensor, skipped: Tensor | None) -> Tensor:
        """Returns the scaled orthogonal direction for `gradients` [K, m, n]; updates the momentum."""
        section, states = self._section, [self.state[p] for p in parameters]
        for state, p in zip(states, parameters, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
        buffers = [state["momentum_buffer"] for state in states]
        before = torch.stack(buffers)
        mean = before.lerp(gradients, 1 - section.momentum)
        if skipped is not None:
            mean = torch.where(skipped, before, mean)
        torch._foreach_copy_(buffers, mean.unbind())
        ahead = gradients.lerp(mean, section.momentum) if section.nesterov else mean
        return self.on_whole(parameters, self._orthogonal, ahead)

    def _orthogonal(self, x: Tensor) -> Tensor:
        """Returns the scaled orthogonal direction of matrices [K, m, n], in their dtype."""
        scale = _scale(self._section.adjust, *x.shape[-2:])
        return orthogonalise(x.to(self._type(x)), self._section.iterations).to(x.dtype).mul_(scale)

    def _type(self, x: Tensor) -> torch.dtype:
        if self._section.newton_schulz == "auto":
            return torch.bfloat16 if x.device.type == "cuda" else x.dtype
        return torch.float32 if self._section.newton_schulz == "fp32" else torch.bfloat16


def _scale(adjust: str, m: int, n: int) -> float:
    return 0.2 * max(m, n) ** 0.5 if adjust == "match_rms_adamw" else max(1, m / n) ** 0.5


def orthogonalise(x: Tensor, iterations: int) -> Tensor:
    """Orthogonalises matrices [K, m, n]: keeps the singular vectors of `x` and maps singular values s to near 1.

    Applies p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 `iterations` times, from s over the Frobenius norm. Returns new
    memory.
    """
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT  # the smaller of the two Gram matrices
    wide = wide / torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(iterations):
        gram = wide @ wide.mT  # [K, m, m]
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
