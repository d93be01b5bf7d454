"""SPAM as the reference ran it, to reproduce its runs: its counter advances by two per step (defects D11, D12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from ratrain.recipe.groups import Group
from ratrain.recipe.optim.adamwspam import Gradients, SpikeAware, Spikes, cut
from ratrain.registry import register

_FLOOR = 1e-12  # added to v to cut gradients
_COLDEST = 1e-3  # least factor on the scheduled learning rate


@register("spam_legacy")
class SPAMLegacy(SpikeAware):
    """AdamW with AMSGrad, that tests the norm, and resets m and v before the update of every interval/2-th step.

    An odd interval is not halved. The reference ran betas (0.9, 0.999), and 1000 for both interval and warmup, which
    keeps the learning rate inside of a warm-up all the time.
    """

    held: ClassVar[int] = 3

    theta: PositiveFloat = Field(default=50.0, description="with clip_spikes: g^2 is cut to theta times raw v")
    interval: NonNegativeInt = Field(default=1000, description="twice the steps between resets, if even; 0: none")
    warmup: NonNegativeInt = Field(default=100, description="twice the steps from a reset to the scheduled rate")
    spike_z: NonNegativeFloat = Field(
        default=2.0, description="standard deviations above its history that make a norm a spike; 0: no such test"
    )
    clip_spikes: bool = Field(default=False, description="cut gradients by theta, without bias correction")

    @property
    def transfers(self) -> bool:
        return False  # it reproduces runs of one width; with clip_spikes its floor under v is absolute

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`; its learning rate is a 0-d tensor on the parameters' device."""
        return LegacySPAM(groups, self)


class LegacySPAM(Spikes):
    """Reproduces the reference's order: cut, compute the norm, test it, clip by it, reset, warm up, update."""

    def __init__(self, groups: Sequence[Group], section: SPAMLegacy):
        super().__init__(groups, section, amsgrad=True)
        self._section = section
        self._every = section.interval if section.interval % 2 else section.interval // 2  # steps

    def _prepare(self, done: int) -> None:
        if self._section.clip_spikes:
            self._cut()
        if self._z:
            self._judge(self._norm())
        if self._every and (done + 1) % self._every == 0:
            self._reset("exp_avg", "exp_avg_sq")  # AMSGrad's maximum and the step stay

    def _cut(self) -> None:
        """Cuts unclipped gradients by moments of clipped gradients; clips by the norm of the cut gradients."""
        gradients = {p: g for p, g in self._gradients().items() if p in self.state}
        if not gradients:
            return
        self._count("clipped", self._total(gradients, self._cut_these))
        if self.grad_scale is not None and self._section.clip:
            self.grad_scale = (self._norm() / self._section.clip).clamp(min=1)

    def _cut_these(self, gradients: Gradients) -> Tensor:
        """Cuts gradients in place; returns the number of coordinates, 0-d."""
        limits = torch._foreach_add([self.state[p]["exp_avg_sq"] for p in gradients], _FLOOR)
        torch._foreach_mul_(limits, self._section.theta)
        torch._foreach_sqrt_(limits)
        return cut(list(gradients.values()), limits)

    def _warmth(self, done: int) -> float:
        """Returns the warm-up factor; a reset scales the step that directly follows it."""
        since = 2 * ((done + 1) % self._every) if self._every else 0
        if not self._every or done + 1 < self._every or since >= self._section.warmup:
            return 1.0
        return max(_COLDEST, (1 - math.cos(math.pi * since / self._section.warmup)) / 2)
